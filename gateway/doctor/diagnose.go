package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/answer"
	"ptgate/gateway/budget"
	"ptgate/gateway/config"
	"ptgate/gateway/session"
)

// A Case is what is known of a connection that has failed.
type Case struct {
	Bridge *config.Bridge // nil: it is not known
	Err    error          // why it failed
	Now    time.Time      // this machine's clock; zero: it says nothing
	// Dialling says that no connection has come up until then, so that a time that has
	// passed was spent on one.
	Dialling bool
	// Worked says that the bridge has worked with this configuration.
	Worked bool
	// Written is when the configuration was written, by this machine's clock then. Zero: it
	// says nothing.
	Written time.Time
	// HeldOpen says what became of a TCP connection to the same address on which nothing
	// was sent: true, it stayed; false, it was ended. Nil: there was none.
	HeldOpen *bool
	// Led has the addresses to which the name in the bridge's args leads. Nil: not known.
	Led []netip.Addr
}

// hour is how far clocks may differ for obfs4 (obfs4-spec section 4).
const hour = time.Hour

// leastHandshake is how many bytes of a handshake show that the far end has begun one. A
// service of another kind may greet with a line.
const leastHandshake = 256

// Diagnose says what kind of trouble an error of a bridge shows.
func Diagnose(c Case) Verdict {
	v := c.kind()
	v.Evidence = append(v.Evidence, c.evidence()...)
	return v
}

func (c *Case) kind() Verdict {
	err := c.Err
	switch {
	case err == nil:
		return of(Works, "")
	case isA[*adapter.StartError](err):
		v := of(Program, "")
		v.Next = startAdvice(err, c.pt())
		return v
	case OfProgram(err):
		v := of(Program, "")
		v.Says = "the transport program runs, and takes no connection of ptgate's; the bridge was not reached"
		v.Itself, v.Next = rests, startAdvice(err, c.pt())
		return v
	case isA[*session.AuthError](err):
		return of(User, "")
	}
	if r, ok := errors.AsType[*session.Refusal](err); ok {
		return ofReason(r.Reason())
	}
	if v, ok := c.web(); ok {
		return v
	}
	d, dialled := errors.AsType[*builtin.DialError](err)
	began := dialled && (d.Stage == builtin.StageConnect || d.Stage == builtin.StageProxy)
	shook := dialled && d.Stage == builtin.StageHandshake
	program := isA[*adapter.DialError](err)
	switch {
	case errors.Is(err, session.ErrEnded), isA[*session.Lost](err) && reset(err):
		if c.polled() {
			return of(NoTunnel, "")
		}
		return of(KeptOut, "")
	case session.IsFull(err):
		return of(Full, "")
	case session.IsOtherBox(err):
		return of(OtherBox, "")
	case session.IsForeign(err):
		return of(WrongFar, "")
	case errors.Is(err, session.ErrStopped) && (Refused(err) || timedOut(err)):
		return of(Stopped, "")
	case Refused(err):
		if c.poisoned() {
			return c.withAddr(of(Poison, ""))
		}
		return of(Closed, "")
	case NoWay(err):
		if c.poisoned() {
			return c.withAddr(of(Poison, ""))
		}
		return c.noRoute()
	case errors.Is(err, builtin.ErrFiltered), began && timedOut(err), errors.Is(err, syscall.ETIMEDOUT) && !shook:
		if c.poisoned() {
			return c.withAddr(of(Poison, ""))
		}
		return of(Filtered, "")
	case began && errors.Is(err, syscall.ECONNRESET):
		return of(ResetSYN, "")
	case shook && d.Received > leastHandshake && timedOut(err):
		v := of(Frozen, fmt.Sprintf("%d bytes", d.Received))
		v.Next = "the handshake itself does not get through: another transport may have a shorter one"
		return v
	case shook && d.Received == 0 && reset(err):
		if c.HeldOpen != nil && !*c.HeldOpen {
			return of(ResetSYN, "")
		}
		return of(ResetData, "")
	case shook && d.Received > 0 && timedOut(err):
		return of(Handshake, "")
	case shook && timedOut(err):
		return c.unanswered()
	case program && timedOut(err):
		return c.unanswered()
	case dialled, program:
		return of(Handshake, "")
	case reset(err) && c.Dialling && !c.polled():
		return of(KeptOut, "") // the transport works, and the far end has said nothing
	case timedOut(err) && c.Dialling:
		return c.unanswered()
	case timedOut(err) && c.Worked:
		return of(GoneSilent, "")
	case timedOut(err):
		return of(Silent, "")
	}
	return of(Unknown, "")
}

// web is the verdict on what a web server in front has shown.
func (c *Case) web() (Verdict, bool) {
	if s, ok := errors.AsType[*builtin.StatusError](c.Err); ok {
		k := WebServer
		switch s.Status {
		case 404, 410:
			k = WebPath
		case 502, 503, 504:
			k = WebBackend
		}
		v := of(k, fmt.Sprint(s.Status), fmt.Sprintf("the web server answered %d", s.Status))
		return v, true
	}
	if isA[*net.DNSError](c.Err) {
		return c.withAddr(of(Names, "")), true
	}
	if alert, ok := errors.AsType[*net.OpError](c.Err); ok && alert.Op == "remote error" && alert.Err.Error() == noCertificate {
		v := of(Certificate, "", "the web server ends the handshake with the TLS alert internal_error, as one without a certificate does")
		v.Says = "TLS: the web server has no certificate to show"
		v.Next = "a new server gets its certificate within a minute: try again then. If it stays so, its log says why the authority gives none"
		return v, true
	}
	if h, ok := errors.AsType[x509.HostnameError](c.Err); ok {
		if c.poisoned() {
			return c.withAddr(of(Poison, "", "the certificate there is for another name")), true
		}
		v := of(Certificate, "", "the certificate is for another name")
		v.Says = "TLS: the certificate is for another name than the bridge's url: something on the way answers in place of the web server, or the url is wrong"
		v.Evidence = append(v.Evidence, dates(h.Certificate)...)
		return v, true
	}
	if u, ok := errors.AsType[x509.UnknownAuthorityError](c.Err); ok {
		v := of(Certificate, "", "the certificate is of an authority that this machine does not trust")
		v.Says = "TLS: the certificate is not one that this machine trusts: something on the way answers in place of the web server, or the web server has one of an authority of your own"
		v.Next = "if the authority is yours, name a file with it: env = { SSL_CERT_FILE = \"/etc/own-ca.pem\" } of the transport's [pt.NAME]; " +
			"if not, the connection is intercepted: try another network"
		v.Evidence = append(v.Evidence, dates(u.Cert)...)
		return v, true
	}
	if i, ok := errors.AsType[x509.CertificateInvalidError](c.Err); ok {
		if i.Reason == x509.Expired && i.Cert != nil && !c.Now.IsZero() && c.Now.Before(i.Cert.NotBefore) {
			return of(Clock, "", "the web server's certificate begins at a later time than it is here"), true
		}
		v := of(Certificate, "", "the certificate has expired or is not valid")
		v.Says = "TLS: the web server's certificate is not valid"
		v.Next = "has it expired, and is the time right on both boxes? Compare `date -u`; renew the certificate on the server"
		return v, true
	}
	if errors.Is(c.Err, builtin.ErrOtherCertificate) {
		return of(Certificate, "", "the certificate is not the one whose hash the bridge line has"), true
	}
	return Verdict{}, false
}

// noCertificate is how crypto/tls words the alert of a server of Go that has no certificate.
const noCertificate = "tls: internal error"

func dates(c *x509.Certificate) []string {
	if c == nil || c.NotBefore.IsZero() {
		return nil
	}
	return []string{"it was made on " + c.NotBefore.UTC().Format(time.DateOnly)}
}

// withAddr adds what a person can do where the bridge may say which address its name has.
func (c *Case) withAddr(v Verdict) Verdict {
	if c.Bridge == nil {
		return v
	}
	switch row, _ := builtin.Lookup(c.Bridge.Transport); {
	case slices.Contains(row.Args.Known, "addr"):
		v.Next += ", or give the bridge an addr with the server's address"
	case !row.Placeholder:
		v.Next += ", or the bridge its IP address"
	}
	return v
}

// unanswered looks at this machine's clock before it says that nobody answers.
func (c *Case) unanswered() Verdict {
	if c.polled() && !isA[*builtin.DialError](c.Err) {
		v := of(NoTunnel, "")
		v.Says = "nothing comes back: the web server in front can't be reached, or something on the way drops what it answers"
		return v
	}
	if _, ok := c.webServer(); ok && !c.Worked {
		v := of(Unanswered, "")
		v.Says = "the web server took the connection and did not answer: something on the way drops what follows, most often because of the name in the bridge's url or front; or the web server hangs"
		v.Next = "does the web server answer in a browser, here and elsewhere? If only elsewhere, it is filtered here: try another name, another transport or another network"
		return v
	}
	if behind, why := c.behind(); behind {
		return of(Clock, "", why)
	}
	if c.Worked {
		return of(GoneSilent, "")
	}
	return of(Unanswered, "")
}

// behind tells whether this machine's clock shows a time that is past: before the
// configuration or the program was made.
func (c *Case) behind() (yes bool, why string) {
	switch {
	case c.Now.IsZero():
	case c.Now.Add(hour).Before(c.Written):
		return true, "the configuration was written at a later time than it is now: " + c.Written.UTC().Format(time.RFC3339)
	case c.Now.Add(24 * hour).Before(built()):
		return true, "this program was made at a later time than it is now: " + built().UTC().Format(time.RFC3339)
	}
	return false, ""
}

// built is the time of the revision from which the program was built; zero: not known.
var built = sync.OnceValue(func() (t time.Time) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return t
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ = time.Parse(time.RFC3339, s.Value)
		}
	}
	return t
})

func (c *Case) noRoute() Verdict {
	v := of(NoRoute, "")
	if c.Bridge != nil {
		if a, err := netip.ParseAddrPort(c.Bridge.Address); err == nil && a.Addr().Is6() {
			v.Evidence = append(v.Evidence, "the bridge's address is IPv6")
			v.Next = "this machine has no IPv6 that reaches it: ask for a bridge with an IPv4 address, or get IPv6"
		}
	}
	return v
}

// poisoned tells whether the name in the args leads to addresses that no public server
// has.
func (c *Case) poisoned() bool {
	for _, a := range c.Led {
		if a = a.Unmap(); a.IsGlobalUnicast() && !a.IsPrivate() {
			return false
		}
	}
	return len(c.Led) > 0
}

// evidence tells what is seen of the error and of this machine.
func (c *Case) evidence() (all []string) {
	if d, ok := errors.AsType[*builtin.DialError](c.Err); ok {
		if d.Stage == builtin.StageHandshake {
			all = append(all, fmt.Sprintf("TCP connected; the far end sent %d bytes of the handshake", d.Received))
		}
	}
	if c.HeldOpen != nil {
		if *c.HeldOpen {
			all = append(all, "a connection on which nothing is sent stays open")
		} else {
			all = append(all, "a connection on which nothing is sent is ended, too")
		}
	}
	if s, ok := errors.AsType[*builtin.StatusError](c.Err); ok && !s.Date.IsZero() && !c.Now.IsZero() {
		if off := c.Now.Sub(s.Date); off.Abs() > hour {
			all = append(all, fmt.Sprintf("this machine's clock differs from the web server's by %v", off.Round(time.Minute)))
		}
	}
	return all
}

// polled tells whether the transport says nothing of its own connections: what has ended may
// never have reached the far end.
func (c *Case) polled() bool {
	if c.Bridge == nil {
		return false
	}
	row, _ := builtin.Lookup(c.Bridge.Transport)
	return row.Polled
}

// webServer is the one in front of the bridge, where its args name one.
func (c *Case) webServer() (builtin.Web, bool) {
	if c.Bridge == nil {
		return builtin.Web{}, false
	}
	return builtin.WebOf(c.Bridge.Transport, c.Bridge.Args)
}

func (c *Case) pt() *config.PT {
	if c.Bridge == nil || c.Bridge.PT == nil {
		return new(config.PT)
	}
	return c.Bridge.PT
}

// startAdvice is what to do about a transport program that did not start.
func startAdvice(err error, pt *config.PT) string {
	switch {
	case NoProgram(err):
		return pt.Install()
	case errors.Is(err, fs.ErrPermission):
		return "make the transport program executable, or correct " + pt.Setting("exec")
	case errors.Is(err, adapter.ErrRefused):
		return "the program does not offer this transport: take another one, with " + pt.Setting("exec")
	}
	return "this may be no transport program, or one that wants other options: run it by hand, and look at " + pt.Setting("exec")
}

// OfProgram tells whether the transport's own program, which runs, has refused or ended a
// connection before it was told where that is to lead.
func OfProgram(err error) bool {
	d, ok := errors.AsType[*adapter.DialError](err)
	return ok && (d.Stage == adapter.StageConnect || d.Stage == adapter.StageGreeting) && !isA[adapter.Reply](err) && (Refused(err) || reset(err))
}

// StartAdvice is a text for the operator: what to do about a transport program that did
// not start. It is "" for any other error.
func StartAdvice(err error, pt *config.PT) string {
	if !isA[*adapter.StartError](err) {
		return ""
	}
	return startAdvice(err, pt)
}

// NoProgram tells whether a PT did not start because its program is missing.
func NoProgram(err error) bool {
	return isA[*adapter.StartError](err) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound))
}

// Refused tells whether the bridge's port is closed. Not every external PT reports
// that.
func Refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, adapter.ReplyConnectionRefused)
}

// NoWay tells whether this machine has no network route to the bridge's address.
func NoWay(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL) ||
		errors.Is(err, adapter.ReplyNetworkUnreachable) || errors.Is(err, adapter.ReplyHostUnreachable)
}

func reset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, adapter.ReplyTTLExpired) || answer.Of(err) == answer.Timeout
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// ofReason is the verdict on a refusal by the far end.
func ofReason(r answer.Reason) Verdict {
	switch r {
	case answer.Blocked, answer.ExitPolicy:
		return of(Policy, "")
	case answer.NoNames:
		return of(NoNames, "")
	case answer.NotFound:
		return of(NotFound, "")
	case answer.NameFailed:
		return of(Origin, "", "a name server that the far end asks reports a failure for that name")
	case answer.Limit:
		return of(Full, "")
	}
	return of(Origin, "", "the far end says: "+r.String())
}

// OfLimit is the verdict on a limit that sessions have learned.
func OfLimit(l budget.Learned) Verdict {
	k := map[budget.Kind]Kind{budget.KindBytes: Frozen, budget.KindAge: Cut, budget.KindIdle: Silenced,
		budget.KindNew: Crowded, budget.KindAtOnce: Crowded}[l.Kind]
	return of(k, cmp.Or(l.At, l.Value), strings.TrimSpace(l.Text))
}
