package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/budget"
	"ptgate/gateway/config"
	"ptgate/gateway/session"
)

var yes, no = true, false

// Each error of a bridge, the kind of trouble that it shows, and words of the advice.
// noCertificateError is what a client gets from a server that waits for its certificate.
func noCertificateError(t *testing.T) error {
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer b.Close()
		_ = tls.Server(b, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none yet") }}).Handshake()
	}()
	err := tls.Client(a, &tls.Config{ServerName: "www.example.com"}).Handshake()
	<-done
	if err == nil {
		t.Fatal("there is a certificate")
	}
	return err
}

func TestDiagnose(t *testing.T) {
	named := &config.PT{Name: "apart", Exec: []string{"/opt/pt"}, Line: 3}
	start := func(err error) error { return &adapter.StartError{Err: err} }
	outside := func(err error) error { return &adapter.DialError{Transport: "obfs3", Err: err} }
	connect := func(err error) error {
		return &builtin.DialError{Transport: "obfs4", Stage: builtin.StageConnect, Err: err}
	}
	shake := func(err error, received int) error {
		return &builtin.DialError{Transport: "obfs4", Stage: builtin.StageHandshake, Err: err, Received: received}
	}
	url := adapter.Args{{Key: "url", Value: "https://www.example.com/x"}}
	web := &config.Bridge{Transport: "webtunnel", Args: url, PT: named}
	meek := &config.Bridge{Transport: "meek_lite", Args: url, PT: named}
	six := &config.Bridge{Address: "[2001:db8::1]:443", PT: named}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		c    Case
		kind Kind
		want string // in what is said, or in the advice
	}{
		{Case{}, Works, ""},
		{Case{Err: start(fs.ErrNotExist)}, Program, "install the program, or correct exec of [pt.apart]"},
		{Case{Err: start(&exec.Error{Name: "snowflake-client", Err: exec.ErrNotFound}), Bridge: &config.Bridge{PT: &config.PT{Name: "snowflake"}}}, Program,
			`"snowflake" needs the program snowflake-client or lyrebird: install one`},
		{Case{Err: start(syscall.EACCES)}, Program, "executable, or correct exec of [pt.apart]"},
		{Case{Err: start(adapter.ErrRefused)}, Program, "does not offer"},
		{Case{Err: start(adapter.ErrStartTimeout)}, Program, "may be no transport program"},

		{Case{Err: fmt.Errorf("%w: %w", session.ErrStopped, connect(syscall.ECONNREFUSED))}, Stopped, "start it on its machine"},
		{Case{Err: answer.New(answer.Timeout, session.ErrStopped)}, Stopped, "ask its operator"},
		{Case{Err: fmt.Errorf("%w: %w", session.ErrStopped, connect(syscall.ENETUNREACH))}, NoRoute, "no way"},
		{Case{Err: connect(syscall.ECONNREFUSED)}, Closed, "is the server running"},
		{Case{Err: outside(adapter.ReplyConnectionRefused)}, Closed, "nothing listens"},
		{Case{Err: connect(syscall.ENETUNREACH)}, NoRoute, "no way"},
		{Case{Err: connect(syscall.ENETUNREACH), Bridge: six}, NoRoute, "IPv6"},
		{Case{Err: outside(adapter.ReplyHostUnreachable)}, NoRoute, "no way"},
		{Case{Err: &adapter.DialError{Transport: "obfs3", Stage: adapter.StageConnect, Err: syscall.ECONNREFUSED}}, Program, "takes no connection"},
		{Case{Err: &adapter.DialError{Transport: "obfs3", Stage: adapter.StageGreeting, Err: io.EOF}}, Program, "run it by hand"},
		{Case{Err: &adapter.DialError{Transport: "obfs3", Stage: adapter.StageGreeting, Err: io.EOF}, Bridge: web}, Program, "exec"},
		{Case{Err: &adapter.DialError{Transport: "obfs3", Stage: adapter.StageGreeting, Err: adapter.ReplyConnectionRefused}}, Closed, ""},
		{Case{Err: connect(builtin.ErrFiltered)}, Filtered, "firewall"},
		{Case{Err: connect(context.DeadlineExceeded)}, Filtered, "firewall"},
		{Case{Err: connect(syscall.ECONNRESET)}, ResetSYN, "allow or deny"},
		{Case{Err: shake(syscall.ECONNRESET, 0)}, ResetData, "another transport"},
		{Case{Err: shake(io.EOF, 0), HeldOpen: &yes}, ResetData, "another transport"},
		{Case{Err: shake(io.EOF, 0), HeldOpen: &no}, ResetSYN, "another bridge"},
		{Case{Err: shake(context.DeadlineExceeded, 0)}, Unanswered, "the clock of one side is wrong by more than an hour"},
		{Case{Err: shake(context.DeadlineExceeded, 0)}, Unanswered, "date -u"},
		{Case{Err: shake(context.DeadlineExceeded, 0), Bridge: web}, Unanswered, "does the web server answer in a browser"},
		{Case{Err: context.DeadlineExceeded, Dialling: true, Bridge: meek}, NoTunnel, "nothing comes back"},
		{Case{Err: &net.DNSError{IsNotFound: true}, Bridge: web}, Names, "give the bridge an addr"},
		{Case{Err: &net.DNSError{IsNotFound: true}, Bridge: meek}, Names, "give this machine another name server"},
		{Case{Err: connect(syscall.ENETUNREACH), Bridge: web, Led: []netip.Addr{netip.MustParseAddr("10.10.34.34")}}, Poison, "give the bridge an addr"},
		{Case{Err: connect(syscall.ENETUNREACH), Bridge: web, Led: []netip.Addr{netip.MustParseAddr("1.1.1.1")}}, NoRoute, "no way"},
		{Case{Err: shake(context.DeadlineExceeded, 700)}, Frozen, "700 bytes"},
		{Case{Err: outside(adapter.ReplyTTLExpired)}, Unanswered, "copy the bridge line anew"},
		{Case{Err: outside(adapter.ReplyGeneralFailure)}, Handshake, "ptgate bridges"},
		{Case{Err: shake(errors.New("handshake: MAC mismatch"), 900)}, Handshake, "ptgate bridges"},
		{Case{Err: shake(context.DeadlineExceeded, 0), Now: now, Written: now.Add(20 * time.Hour)}, Clock, "set the clock"},
		{Case{Err: shake(context.DeadlineExceeded, 0), Now: now, Written: now.Add(-20 * time.Hour)}, Unanswered, ""},
		{Case{Err: shake(context.DeadlineExceeded, 0), Now: time.Unix(0, 0)}, Unanswered, ""}, // a test has no revision

		{Case{Err: connect(&net.DNSError{IsNotFound: true})}, Names, "name server"},
		{Case{Err: connect(syscall.ECONNREFUSED), Led: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, Poison, "DNS poisoned"},
		{Case{Err: connect(builtin.ErrFiltered), Led: []netip.Addr{netip.MustParseAddr("10.10.34.35")}}, Poison, "name server"},
		{Case{Err: connect(syscall.ECONNREFUSED), Led: []netip.Addr{netip.MustParseAddr("8.8.8.8")}}, Closed, ""},
		{Case{Err: shake(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, 900)}, Certificate, "SSL_CERT_FILE"},
		{Case{Err: shake(x509.HostnameError{Certificate: new(x509.Certificate)}, 900)}, Certificate, "another name"},
		{Case{Err: shake(x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{NotAfter: now}}, 900), Now: now.AddDate(1, 0, 0)}, Certificate, "expired"},
		{Case{Err: shake(x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{NotBefore: now}}, 900), Now: now.Add(-48 * time.Hour)}, Clock, "set the clock"},
		{Case{Err: shake(builtin.ErrOtherCertificate, 900)}, Certificate, "intercepted"},
		{Case{Err: shake(noCertificateError(t), 7)}, Certificate, "within a minute: try again"},
		{Case{Err: shake(&builtin.StatusError{Status: 404}, 900)}, WebPath, "path"},
		{Case{Err: shake(&builtin.StatusError{Status: 502}, 900)}, WebBackend, "start ptgate"},
		{Case{Err: shake(&builtin.StatusError{Status: 200}, 900)}, WebServer, "upgrades"},

		{Case{Err: shake(context.DeadlineExceeded, 11)}, Handshake, "ptgate bridges"},
		{Case{Err: &session.Lost{Stage: "method", Err: syscall.ECONNRESET}}, KeptOut, "kept out by allow or deny"},
		{Case{Err: &session.Lost{Stage: "method", Err: syscall.ECONNRESET}, Bridge: &config.Bridge{Transport: "meek_lite", PT: named}}, NoTunnel, "ptgate probe"},
		{Case{Err: fmt.Errorf("%w: %w", session.ErrEnded, syscall.ECONNRESET), Bridge: &config.Bridge{Transport: "meek_lite", PT: named}}, NoTunnel, "ptgate probe"},
		{Case{Err: fmt.Errorf("%w: %w", session.ErrEnded, syscall.ECONNRESET)}, KeptOut, "kept out by allow or deny"},
		{Case{Err: &session.Lost{Stage: "method", Err: os.ErrDeadlineExceeded}}, Silent, "far of the bridge"},
		{Case{Err: session.ErrEnded}, KeptOut, "kept out by allow or deny"},
		{Case{Err: fmt.Errorf("read: %w", syscall.ECONNRESET), Dialling: true}, KeptOut, "kept out by allow or deny"},
		{Case{Err: fmt.Errorf("read: %w", syscall.ECONNRESET)}, Unknown, "probe"},
		{Case{Err: &session.Lost{Stage: "method", Err: syscall.ECONNRESET}}, KeptOut, "`ptgate version` on both sides"},
		{Case{Err: &session.AuthError{What: "x"}}, User, "[exit] users"},
		{Case{Err: fmt.Errorf("x: %w", socks5.ErrMalformed)}, WrongFar, "far = "},
		{Case{Err: context.DeadlineExceeded}, Silent, "far of the bridge"},
		{Case{Err: context.DeadlineExceeded, Dialling: true}, Unanswered, "date -u"},
		{Case{Err: context.DeadlineExceeded, Dialling: true, Worked: true}, GoneSilent, "own network"},
		{Case{Err: &session.Refusal{Code: 1}}, Full, "limits.connections"},
		{Case{Err: &session.Refusal{Code: 2}}, Policy, "allow and deny on the server"},
		{Case{Err: &session.Refusal{Code: 4, Detail: answer.NoNames.Detail()}}, NoNames, "/etc/resolv.conf"},
		{Case{Err: &session.Refusal{Code: 4, Detail: answer.NotFound.Detail()}}, NotFound, "spelling"},
		{Case{Err: &session.Refusal{Code: 5}}, Origin, "elsewhere"},
		{Case{Err: errors.New("?")}, Unknown, "probe"},
	} {
		if tt.c.Bridge == nil {
			tt.c.Bridge = &config.Bridge{Address: "192.0.2.1:443", PT: named}
		}
		v := Diagnose(tt.c)
		if v.Kind != tt.kind || !strings.Contains(v.Says+" "+v.Next, tt.want) {
			t.Errorf("%v: %+v, want %s with %q", tt.c.Err, v, tt.kind, tt.want)
		}
		if v.Kind != Works && (v.Itself == "" || v.Next == "" || !strings.Contains(v.Advice(), v.Next[1:])) {
			t.Errorf("%v: %+v is not whole", tt.c.Err, v)
		}
	}
}

// What the status page and the log show must be whole, and must have no address in it.
func TestTable(t *testing.T) {
	address := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+|%!|https?://[a-z]`)
	for k, w := range table {
		v := of(k, "16KiB")
		if v.Says == "" || address.MatchString(v.Advice()) || strings.Contains(v.Says, "%") {
			t.Errorf("%s: %+v", k, v)
		}
		if k != Works && k != Unmeasured && k != Program && (w.itself == "" || w.next == "") {
			t.Errorf("%s has a hole: %+v", k, w)
		}
	}
}

// What sessions have learned has the same words.
func TestOfLimit(t *testing.T) {
	for kind, want := range map[budget.Kind]Kind{budget.KindBytes: Frozen, budget.KindAge: Cut, budget.KindIdle: Silenced,
		budget.KindNew: Crowded, budget.KindAtOnce: Crowded} {
		v := OfLimit(budget.Learned{Kind: kind, Value: "14KiB", Text: "5 connections died"})
		if v.Kind != want || !strings.Contains(v.Says, "14KiB") || len(v.Evidence) != 1 {
			t.Errorf("%v: %+v", kind, v)
		}
	}
	// What the network does is told, not what carriers keep to.
	if v := OfLimit(budget.Learned{Kind: budget.KindBytes, Value: "14KiB", At: "16KiB"}); !strings.Contains(v.Says, "16KiB") || v.Value != "16KiB" {
		t.Errorf("%+v", v)
	}
	for kind := budget.KindNone + 1; kind <= budget.KindAtOnce; kind++ {
		if v := OfLimit(budget.Learned{Kind: kind, Value: "14KiB"}); v.Says == "" || v.Itself == "" || v.Next == "" {
			t.Errorf("%v has no words: %+v", kind, v)
		}
	}
}

func Example() {
	v := Diagnose(Case{Err: syscall.ECONNREFUSED})
	fmt.Println(v.Kind)
	fmt.Println(v.Says)
	// Output:
	// closed
	// port closed: the address answers, but nothing listens there
}
