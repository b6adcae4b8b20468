package gateway

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"

	"ptgate/gateway/answer"
)

// What is wrong with a direct connection is told as a matter of this machine.
func TestDirectReason(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want answer.Reason
	}{
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, answer.NoNamesHere},
		{&net.DNSError{Err: "i/o timeout", IsTimeout: true}, answer.NoNamesHere},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, answer.NotFound},
		{fmt.Errorf("dial: %w", syscall.ENETUNREACH), answer.UnreachableHere},
		{syscall.EINVAL, answer.UnreachableHere}, // an address of one link without the link
		{syscall.ECONNREFUSED, answer.Refused},
		{context.DeadlineExceeded, answer.Timeout},
		{answer.Errorf(answer.Blocked, "a private address"), answer.Blocked},
	} {
		if got := directReason(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}
