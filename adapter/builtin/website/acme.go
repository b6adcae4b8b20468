package website

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"

	"ptgate/adapter"
	"ptgate/adapter/durable"
)

const (
	// The ways of an authority to see that the name is ours (RFC 8737, and RFC 8555
	// section 8.3).
	overTLS  = "tls-alpn-01"
	overHTTP = "http-01"

	attemptTimeout = 5 * time.Minute

	// The wait after a failure. Let's Encrypt allows five failures an hour, and there may be
	// two in one attempt.
	firstRetry = 15 * time.Minute
	lastRetry  = 6 * time.Hour
)

// An authority has a certificate made by an authority that speaks ACME, and renews it. It
// is the client of x/crypto/acme: the manager beside it (autocert) has timers that nobody
// can stop, and asks the authority when a stranger connects.
type authority struct {
	cfg       Config
	directory string
	dir       string // where the certificate and the key of the account are
	web       *http.Client
	log       *slog.Logger

	now atomic.Pointer[tls.Certificate] // nil: there is none yet

	mu      sync.Mutex
	alpn    *tls.Certificate  // what the authority is to see over TLS; nil: it does not look
	answers map[string]string // what it is to see over HTTP, by path
}

func newAuthority(cfg Config, stateDir string, log *slog.Logger) (*authority, error) {
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 30 * time.Second,
		DisableKeepAlives:   true, // nothing is left behind between two certificates
	}
	if cfg.CAFile != "" {
		roots, err := ReadRoots(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls: ca %s: %w", cfg.CAFile, err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	if stateDir == "" {
		return nil, adapter.Constant("tls: acme needs a state directory for its keys")
	}
	a := &authority{
		cfg: cfg, directory: cfg.Directory, dir: filepath.Join(stateDir, "acme"),
		web: &http.Client{Transport: transport, Timeout: time.Minute},
		log: log, answers: make(map[string]string),
	}
	if a.directory == "" {
		a.directory = acme.LetsEncryptURL
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return nil, fmt.Errorf("tls: state directory: %w", err)
	}
	kept, err := durable.ReadFile(a.certFile())
	switch {
	case err == nil:
		c, err := pair(kept, kept)
		if err != nil {
			log.Warn("the kept certificate can't be used: a new one is asked for", "error", adapter.WithoutAddresses(err))
		} else if time.Now().Before(c.Leaf.NotAfter) {
			a.now.Store(c)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("tls: the kept certificate can't be read: %w", err)
	}
	return a, nil
}

// ReadRoots reads the certificates in a file in PEM.
func ReadRoots(name string) (*x509.CertPool, error) {
	text, err := readPEM(name)
	if err != nil {
		return nil, err
	}
	if err := checkChain(text); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots, nil
}

// certFile has another name for another authority: the certificate of one for tests must
// not be shown once the configuration names the real one.
func (a *authority) certFile() string {
	sum := sha256.Sum256([]byte(a.directory))
	return filepath.Join(a.dir, fmt.Sprintf("%s-%x.pem", a.cfg.Name, sum[:4]))
}

var errNoCertificate = adapter.Constant("there is no certificate yet")

func (a *authority) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := a.now.Load(); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}

// challenge answers an authority that looks over TLS (RFC 8737 section 3). All others, and
// all at other times, see the ordinary server.
func (a *authority) challenge(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if !slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.alpn == nil {
		return nil, nil
	}
	return &tls.Config{Certificates: []tls.Certificate{*a.alpn}, NextProtos: []string{acme.ALPNProto}}, nil
}

// answer answers an authority that looks over HTTP. All else goes to others.
func (a *authority) answer(others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		text, ok := a.answers[r.URL.Path]
		a.mu.Unlock()
		if !ok {
			others.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write([]byte(text))
	})
}

// run gets the first certificate, and each next one when two thirds of the time of the last
// one are over.
func (a *authority) run(ctx context.Context) { a.keep(ctx, a.renew) }

func (a *authority) keep(ctx context.Context, renew func(context.Context) error) {
	retry := firstRetry
	for {
		var wait time.Duration
		if c := a.now.Load(); c != nil {
			wait = time.Until(renewal(c.Leaf))
		}
		if wait <= 0 {
			if a.now.Load() == nil {
				a.log.Info("the authority is asked for a certificate: until there is one, nobody comes in this way")
			}
			err := renew(ctx)
			if err == nil {
				if wait = time.Until(renewal(a.now.Load().Leaf)); wait <= 0 {
					err = errDue
				}
			}
			if err == nil {
				retry = firstRetry
			} else {
				if ctx.Err() == nil {
					a.log.Error("the authority gave no certificate", "error", adapter.WithoutAddresses(err), "again in", retry)
				}
				wait = retry
				retry = min(3*retry, lastRetry)
			}
		}
		// A timer does not notice that the clock was set.
		timer := time.NewTimer(min(wait, lookAgain))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// lookAgain is the longest time between two looks at the certificate's age.
const lookAgain = 12 * time.Hour

// errDue says that a certificate is too old as soon as it is there.
var errDue = adapter.Constant("the new certificate is about to expire: is the clock of this machine right?")

func renewal(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

// renew gets a certificate, keeps it and shows it. If the authority does not see us over
// TLS, it looks over HTTP, where there is a port for that.
func (a *authority) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	text, err := a.order(ctx, overTLS)
	if err != nil && a.cfg.HTTP != "" && ctx.Err() == nil {
		text, err = a.order(ctx, overHTTP)
	}
	if err != nil {
		return err
	}
	c, err := pair(text, text)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(a.certFile(), text, 0o600); err != nil {
		a.log.Warn("the certificate can't be kept: the next start asks for a new one", "error", adapter.WithoutAddresses(err))
	}
	a.now.Store(c)
	a.log.Info("there is a new certificate", "until", c.Leaf.NotAfter)
	return nil
}

// order returns a new key and its certificate chain, in PEM.
func (a *authority) order(ctx context.Context, way string) ([]byte, error) {
	account, err := a.account()
	if err != nil {
		return nil, err
	}
	client := &acme.Client{Key: account, DirectoryURL: a.directory, HTTPClient: a.web, UserAgent: "ptgate"}
	var contact []string
	if a.cfg.Email != "" {
		contact = []string{"mailto:" + a.cfg.Email}
	}
	if _, err := client.Register(ctx, &acme.Account{Contact: contact}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, explain(err)
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(a.cfg.Name))
	if err != nil {
		return nil, explain(err)
	}
	for _, u := range order.AuthzURLs {
		if err := a.prove(ctx, client, u, way); err != nil {
			return nil, explain(err)
		}
	}
	if _, err := client.WaitOrder(ctx, order.URI); err != nil {
		return nil, explain(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{a.cfg.Name}}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, order, request, true)
	if err != nil {
		return nil, explain(err)
	}
	text, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return text, nil
}

// prove shows the authority that the name is ours.
func (a *authority) prove(ctx context.Context, client *acme.Client, at, way string) error {
	z, err := client.GetAuthorization(ctx, at)
	if err != nil || z.Status == acme.StatusValid {
		return err
	}
	i := slices.IndexFunc(z.Challenges, func(c *acme.Challenge) bool { return c.Type == way })
	if i < 0 {
		return adapter.Constant("the authority does not look at the name in the way " + way)
	}
	c := z.Challenges[i]
	if err := a.show(client, c); err != nil {
		return err
	}
	defer a.hide()
	if _, err := client.Accept(ctx, c); err != nil {
		return err
	}
	_, err = client.WaitAuthorization(ctx, z.URI)
	return err
}

// show lets the authority see what it asks for, until hide.
func (a *authority) show(client *acme.Client, c *acme.Challenge) error {
	if c.Type == overTLS {
		cert, err := client.TLSALPN01ChallengeCert(c.Token, a.cfg.Name)
		if err != nil {
			return err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.alpn = &cert
		return nil
	}
	text, err := client.HTTP01ChallengeResponse(c.Token)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[client.HTTP01ChallengePath(c.Token)] = text
	return nil
}

func (a *authority) hide() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alpn = nil
	clear(a.answers)
}

// account is the key by which the authority knows us.
func (a *authority) account() (crypto.Signer, error) {
	name := filepath.Join(a.dir, "account.pem")
	text, err := durable.ReadFile(name)
	if err == nil {
		if block, _ := pem.Decode(bytes.TrimSpace(text)); block != nil {
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if signer, ok := key.(crypto.Signer); ok {
					return signer, nil
				}
			}
		}
		return nil, fmt.Errorf("the key of the account in %s is damaged: remove the file, then there is a new one", name)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if text, err = keyPEM(key); err != nil {
		return nil, err
	}
	return key, durable.WriteFile(name, text, 0o600)
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// An acmeError is an authority's answer. Its class is what it means for the operator,
// without the names and addresses that the authority's own words may have.
type acmeError struct {
	means string
	err   error
}

func (e *acmeError) Error() string { return e.means + ": " + e.err.Error() }
func (e *acmeError) Unwrap() error { return e.err }
func (e *acmeError) Class() string { return e.means }

// meanings of the types of an authority's errors (RFC 8555 section 6.7).
var meanings = map[string]string{
	"caa":                "the name's CAA record allows this authority no certificate",
	"connection":         "the authority can't connect to the name: it needs port 443 (or port 80, with tls.http) from outside, and the right address in DNS",
	"dns":                "the authority finds no address for the name in DNS",
	"malformed":          "the authority can't look at the name, or does not understand the request",
	"rateLimited":        "the authority has had too many requests for this name",
	"rejectedIdentifier": "the authority makes no certificate for this name",
	"tls":                "the authority reaches something else than this server at port 443 of the name",
	"unauthorized":       "the authority reaches something else than this server at the name's address",
	"invalidContact":     "the authority does not take the email",
}

// explain finds an authority's error in err.
func explain(err error) error {
	var problem *acme.Error
	if z, ok := errors.AsType[*acme.AuthorizationError](err); ok {
		for _, e := range z.Errors {
			problem, _ = errors.AsType[*acme.Error](e)
		}
	} else {
		problem, _ = errors.AsType[*acme.Error](err)
	}
	if problem == nil {
		return err
	}
	kind := problem.ProblemType[strings.LastIndexByte(problem.ProblemType, ':')+1:]
	means, ok := meanings[kind]
	if !ok {
		means = "the authority refuses"
	}
	return &acmeError{means, err}
}
