package bridges

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
)

func TestAdvice(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&adapter.StartError{Err: fs.ErrNotExist}, "install"},
		{&adapter.StartError{Err: syscall.EACCES}, "executable"},
		{&adapter.StartError{Err: adapter.ErrRefused}, "does not offer"},
		{&adapter.StartError{Err: adapter.ErrStartTimeout}, "no transport program"},
		{fmt.Errorf("obfs4: connect: %w", syscall.ECONNREFUSED), "nothing listens"},
		{fmt.Errorf("obfs4: connect: %w", syscall.ENETUNREACH), "no way"},
		{fmt.Errorf("obfs4: handshake: %w", context.DeadlineExceeded), "no answer"},
		{errors.New("obfs4: handshake: unexpected EOF"), "ptgate probe"},
	} {
		if got := advice(tt.err); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q, want %q in it", tt.err, got, tt.want)
		}
	}
}
