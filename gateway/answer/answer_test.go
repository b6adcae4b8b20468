package answer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway/answer"
)

// The whole table, as clients see it.
var rows = []struct {
	reason answer.Reason
	socks  byte
	socks4 byte
	http   int
	status string // the error of Proxy-Status
	back   answer.Reason
	name   string
}{
	{answer.Success, 0x00, 0x5a, 200, "", answer.Success, "success"},
	{answer.Internal, 0x01, 0x5b, 500, "proxy_internal_error", answer.Limit, "internal"},
	{answer.Blocked, 0x02, 0x5b, 403, "destination_ip_prohibited", answer.Blocked, "blocked"},
	{answer.Refused, 0x05, 0x5b, 502, "connection_refused", answer.Refused, "refused"},
	{answer.Unreachable, 0x04, 0x5b, 502, "destination_ip_unroutable", answer.Unreachable, "unreachable"},
	{answer.NotFound, 0x04, 0x5b, 502, "dns_error", answer.Unreachable, "not found"},
	{answer.NoBridge, 0x03, 0x5b, 502, "destination_unavailable", answer.Unreachable, "no bridge"},
	{answer.Timeout, 0x06, 0x5b, 504, "connection_timeout", answer.Timeout, "timeout"},
	{answer.Limit, 0x01, 0x5b, 503, "connection_limit_reached", answer.Limit, "limit"},
	{answer.Credentials, 0xff, 0x5d, 407, "http_request_denied", answer.Credentials, "credentials"},
	{answer.BadRequest, 0x01, 0x5b, 400, "http_request_error", answer.Limit, "bad request"},
	{answer.Command, 0x07, 0x5b, 405, "http_request_denied", answer.Command, "command"},
	{answer.BadResponse, 0x01, 0x5b, 502, "http_protocol_error", answer.Limit, "bad response"},
	{answer.Malformed, 0x01, 0x5b, 400, "http_request_error", answer.Limit, "malformed"},
	{answer.TooLarge, 0x01, 0x5b, 431, "http_request_error", answer.Limit, "too large"},
	{answer.Coding, 0x01, 0x5b, 501, "http_request_error", answer.Limit, "coding"},
	{answer.Version, 0x01, 0x5b, 505, "http_request_error", answer.Limit, "version"},
	{answer.Unfinished, 0x01, 0x5b, 400, "http_request_error", answer.Limit, "unfinished"},
	{answer.Slow, 0x01, 0x5b, 408, "http_request_error", answer.Limit, "slow"},
	{answer.ExitPolicy, 0x02, 0x5b, 403, "destination_ip_prohibited", answer.Blocked, "exit policy"},
	{answer.NoNames, 0x04, 0x5b, 502, "dns_error", answer.Unreachable, "no names"},
	{answer.User, 0x03, 0x5b, 502, "destination_unavailable", answer.Unreachable, "user"},
	{answer.NameFailed, 0x04, 0x5b, 502, "dns_error", answer.Unreachable, "name failed"},
	{answer.UnreachableHere, 0x04, 0x5b, 502, "destination_ip_unroutable", answer.Unreachable, "unreachable here"},
	{answer.NoNamesHere, 0x04, 0x5b, 502, "dns_error", answer.Unreachable, "no names here"},
}

// TestDocument: the table of the program's README is this one.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../cmd/ptgate/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.reason == answer.Success {
			continue
		}
		cell := func(code int) string { return fmt.Sprintf(`(%d|refused[a-z ]*|)`, code) } // requests of HTTP have no other codes
		want := fmt.Sprintf("(?m)^\\| [^|]+ \\| `%s` \\| ?%s ?\\| ?%s ?\\| %d \\| `%s` \\|$", row.name, cell(int(row.socks)), cell(int(row.socks4)), row.http, row.status)
		if !regexp.MustCompile(want).Match(text) {
			t.Errorf("cmd/ptgate/README.md has no row of %s as in %s", row.name, want)
		}
	}
}

// What an exit says comes back as it was, where one code stands for several reasons.
func TestDetails(t *testing.T) {
	for sent, want := range map[answer.Reason]answer.Reason{
		answer.Blocked: answer.ExitPolicy, answer.ExitPolicy: answer.ExitPolicy,
		answer.NotFound: answer.NotFound, answer.NoNames: answer.NoNames, answer.NameFailed: answer.NameFailed,
		answer.Unreachable: answer.Unreachable, answer.Refused: answer.Refused, answer.Timeout: answer.Timeout, answer.Limit: answer.Limit,
	} {
		if got := answer.FromExit(sent.SOCKS(), sent.Detail()); got != want {
			t.Errorf("%v comes back as %v, want %v", sent, got, want)
		}
	}
	// An exit of another kind gives no detail, or a port of its own.
	for _, port := range []uint16{0, 5, 1080, 65535} {
		if got := answer.FromExit(4, port); got != answer.Unreachable {
			t.Errorf("port %d: %v", port, got)
		}
	}
}

func TestTable(t *testing.T) {
	for i, r := range rows {
		if int(r.reason) != i {
			t.Fatalf("row %d is of reason %d", i, r.reason)
		}
		if got := r.reason.SOCKS(); got != r.socks {
			t.Errorf("%v: SOCKS %#x, want %#x", r.reason, got, r.socks)
		}
		if got := r.reason.SOCKS4(); got != r.socks4 {
			t.Errorf("%v: SOCKS4 %#x, want %#x", r.reason, got, r.socks4)
		}
		if got := r.reason.HTTP(); got != r.http || http.StatusText(got) == "" {
			t.Errorf("%v: HTTP %d, want %d", r.reason, got, r.http)
		}
		want := ""
		if r.status != "" {
			want = "ptgate; error=" + r.status
		}
		if got := r.reason.ProxyStatus(); got != want {
			t.Errorf("%v: Proxy-Status %q, want %q", r.reason, got, want)
		}
		if got := answer.FromSOCKS(r.socks); got != r.back {
			t.Errorf("%v: comes back as %v, want %v", r.reason, got, r.back)
		}
		if r.reason.String() != r.name {
			t.Errorf("reason %d is called %q, want %q", i, r.reason, r.name)
		}
	}
	// One beyond the table is a fault, and no panic.
	beyond := answer.Reason(len(rows))
	if beyond.SOCKS() != 1 || beyond.SOCKS4() != 0x5b || beyond.HTTP() != 500 || beyond.String() == "" {
		t.Errorf("reason %d: %#x, %d, %q", beyond, beyond.SOCKS(), beyond.HTTP(), beyond)
	}
}

// A server may have its users in either place, and an invitation may have ended.
func TestUserText(t *testing.T) {
	for _, want := range []string{"missing or wrong", "revoked", "ptgate invite", "users of [exit]"} {
		if !strings.Contains(answer.User.Text(), want) {
			t.Errorf("no %q in %q", want, answer.User.Text())
		}
	}
}

// RFC 9209 section 2.3: the types that a proxy may name, of those that we use; and
// RFC 8941 section 4.1: an item and its parameter.
// A user whose quota is used up gets this answer for the rest of the month: another moment is no
// help then.
func TestLimitTellsOfQuota(t *testing.T) {
	if text := answer.Limit.Text(); !strings.Contains(text, "in a month") || !strings.Contains(text, "try again in a moment") {
		t.Error(text)
	}
}

func TestProxyStatusSyntax(t *testing.T) {
	types := strings.Fields(`dns_timeout dns_error destination_not_found destination_unavailable
		destination_ip_prohibited destination_ip_unroutable connection_refused connection_terminated
		connection_timeout connection_read_timeout connection_write_timeout connection_limit_reached
		http_request_error http_request_denied http_protocol_error proxy_internal_response
		proxy_internal_error proxy_configuration_error`)
	form := regexp.MustCompile(`^[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_|~-]*; ?error=([a-z_]+)$`)
	for _, r := range rows[1:] {
		m := form.FindStringSubmatch(r.reason.ProxyStatus())
		if m == nil {
			t.Errorf("%v: %q is no item with a parameter", r.reason, r.reason.ProxyStatus())
			continue
		}
		known := false
		for _, x := range types {
			known = known || x == m[1]
		}
		if !known {
			t.Errorf("%v: %q is no type of RFC 9209", r.reason, m[1])
		}
	}
}

func TestText(t *testing.T) {
	for _, r := range rows[1:] {
		text := r.reason.Text()
		if len(text) < 30 || text[0] < 'A' || text[0] > 'Z' || !strings.HasSuffix(text, ".") || strings.ContainsAny(text, "<>\n\"") {
			t.Errorf("%v: %q is no sentence for a page", r.reason, text)
		}
	}
	if answer.Success.Text() != "" {
		t.Errorf("success says %q", answer.Success.Text())
	}
}

func TestMarshalText(t *testing.T) {
	b, err := json.Marshal(map[string]answer.Reason{"reason": answer.NotFound})
	if err != nil || string(b) != `{"reason":"not found"}` {
		t.Errorf("%s, %v", b, err)
	}
}

func dial(err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
}

func TestOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want answer.Reason
	}{
		{nil, answer.Success},
		{errors.New("something"), answer.Internal},
		{io.EOF, answer.Internal},
		{context.Canceled, answer.Internal},
		{context.DeadlineExceeded, answer.Timeout},
		{os.ErrDeadlineExceeded, answer.Timeout},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, answer.Timeout},
		{fmt.Errorf("far: %w", context.DeadlineExceeded), answer.Timeout},
		{dial(syscall.ECONNREFUSED), answer.Refused},
		{fmt.Errorf("direct: %w", dial(syscall.ECONNREFUSED)), answer.Refused},
		{errors.Join(errors.New("first"), dial(syscall.ECONNREFUSED)), answer.Refused},
		{dial(syscall.ETIMEDOUT), answer.Timeout},
		{dial(syscall.ENETUNREACH), answer.Unreachable},
		{dial(syscall.EHOSTUNREACH), answer.Unreachable},
		{dial(syscall.EADDRNOTAVAIL), answer.Unreachable},
		{dial(syscall.EAFNOSUPPORT), answer.Unreachable},
		{dial(syscall.ECONNRESET), answer.Unreachable},
		{dial(syscall.EMFILE), answer.Limit},
		{dial(syscall.ENFILE), answer.Limit},
		{dial(syscall.EACCES), answer.Blocked},
		{dial(syscall.EPERM), answer.Blocked},
		{os.ErrPermission, answer.Blocked},
		{&net.DNSError{IsNotFound: true}, answer.NotFound},
		{&net.DNSError{IsTimeout: true}, answer.Timeout},
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, answer.Unreachable},
		{fmt.Errorf("look-up: %w", &net.DNSError{IsNotFound: true}), answer.NotFound},
		// A resolver that refuses is not the destination that refuses.
		{&net.DNSError{UnwrapErr: dial(syscall.ECONNREFUSED)}, answer.Unreachable},
		{answer.Errorf(answer.Limit, "full"), answer.Limit},
		{answer.New(answer.NoBridge, dial(syscall.ECONNREFUSED)), answer.NoBridge},
		{fmt.Errorf("outer: %w", answer.New(answer.NoBridge, nil)), answer.NoBridge},
		// The outermost counts.
		{answer.New(answer.Timeout, answer.New(answer.Refused, nil)), answer.Timeout},
	} {
		if got := answer.Of(c.err); got != c.want {
			t.Errorf("Of(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestError(t *testing.T) {
	cause := errors.New("cause")
	err := answer.New(answer.Refused, cause)
	if !errors.Is(err, cause) || err.Error() != "cause" {
		t.Errorf("%v does not wrap its cause", err)
	}
	if got := answer.New(answer.Refused, nil).Error(); got != "refused" {
		t.Errorf("an error without a cause is %q", got)
	}
	if err := answer.Errorf(answer.Blocked, "by %w", cause); !errors.Is(err, cause) || err.Error() != "by cause" {
		t.Errorf("Errorf: %v", err)
	}
}

func TestFromSOCKS(t *testing.T) {
	for code, want := range map[byte]answer.Reason{
		0x03: answer.Unreachable, 0x08: answer.BadRequest, 0x09: answer.Internal, 0x42: answer.Internal, 0xfe: answer.Internal,
	} {
		if got := answer.FromSOCKS(code); got != want {
			t.Errorf("%#x is %v, want %v", code, got, want)
		}
	}
}

func Example() {
	err := fmt.Errorf("exit: %w", &net.DNSError{Err: "no such host", IsNotFound: true})
	reason := answer.Of(err)
	fmt.Printf("SOCKS5 %#02x, HTTP %d, Proxy-Status: %s\n", reason.SOCKS(), reason.HTTP(), reason.ProxyStatus())
	fmt.Println(reason.Text())
	// Output:
	// SOCKS5 0x04, HTTP 502, Proxy-Status: ptgate; error=dns_error
	// The destination's name does not exist. Check its spelling.
}

// A route that says direct has no far end, and its page speaks of none as if it had.
func TestTextsOfDirect(t *testing.T) {
	for _, r := range []answer.Reason{answer.Refused, answer.UnreachableHere, answer.NoNamesHere, answer.NotFound, answer.Timeout, answer.BadResponse} {
		if text := r.Text(); strings.Contains(text, "far end") && !strings.Contains(text, "direct") {
			t.Errorf("%v: %s", r, text)
		}
	}
}
