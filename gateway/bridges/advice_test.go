package bridges

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
	"ptgate/gateway/config"
)

func TestAdvice(t *testing.T) {
	named := &config.PT{Name: "apart", Exec: []string{"/opt/pt"}, Line: 3}
	dial := func(r adapter.Reply) error { return &adapter.DialError{Transport: "obfs3", Err: r} }
	for _, tt := range []struct {
		err  error
		pt   *config.PT
		want string
	}{
		{&adapter.StartError{Err: fs.ErrNotExist}, named, "install the program, or correct exec of [pt.apart]"},
		{&adapter.StartError{Err: &exec.Error{Name: "snowflake-client", Err: exec.ErrNotFound}}, &config.PT{Name: "snowflake"},
			`"snowflake" needs the program snowflake-client or lyrebird: install one`},
		{&adapter.StartError{Err: syscall.EACCES}, named, "executable, or correct exec of [pt.apart]"},
		{&adapter.StartError{Err: adapter.ErrRefused}, &config.PT{Name: "snowflake"}, "does not offer"},
		{&adapter.StartError{Err: adapter.ErrStartTimeout}, &config.PT{Name: "obfs3"}, `no transport program`},
		{&adapter.StartError{Err: adapter.ErrStartTimeout}, &config.PT{Name: "obfs3"}, `exec in a [pt.NAME] with transports = ["obfs3"]`},
		{fmt.Errorf("obfs4: connect: %w", syscall.ECONNREFUSED), named, "nothing listens"},
		{dial(adapter.ReplyConnectionRefused), named, "nothing listens"},
		{fmt.Errorf("obfs4: connect: %w", syscall.ENETUNREACH), named, "no way"},
		{dial(adapter.ReplyHostUnreachable), named, "no way"},
		{fmt.Errorf("obfs4: handshake: %w", context.DeadlineExceeded), named, "no answer"},
		{dial(adapter.ReplyTTLExpired), named, "no answer"},
		{fmt.Errorf("webtunnel: connect: %w", &net.DNSError{IsNotFound: true}), named, "name"},
		{fmt.Errorf("webtunnel: handshake: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), named, "SSL_CERT_FILE"},
		{fmt.Errorf("webtunnel: handshake: %w", x509.HostnameError{Certificate: new(x509.Certificate)}), named, "another name"},
		{fmt.Errorf("webtunnel: handshake: %w", x509.CertificateInvalidError{}), named, "expired"},
		{errors.New("obfs4: handshake: unexpected EOF"), named, "ptgate probe"},
		{dial(adapter.ReplyGeneralFailure), named, "ptgate probe"},
	} {
		if got := advice(tt.err, tt.pt); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q, want %q in it", tt.err, got, tt.want)
		}
	}
}
