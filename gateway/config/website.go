package config

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/builtin/website"
	"ptgate/gateway/destination"
)

// website reads tls and decoy: then the transport answers TLS itself.
func (l *loading) website(t *table, s *Serve) {
	hasTLS, hasDecoy := t.has("tls"), t.has("decoy")
	if !hasTLS && !hasDecoy {
		return
	}
	row, known := builtin.Lookup(s.Transport)
	for _, key := range []string{"tls", "decoy"} {
		switch {
		case !t.has(key) || !known:
		case !row.Front:
			t.fail(t.lineOf(key), "%s is for a transport that is a website to the network: leave it out", key)
			return
		case s.PT != nil && !s.PT.Builtin():
			t.fail(t.lineOf(key), "%s is for the transport inside ptgate: the program of [pt.%s] needs a web server in front", key, s.PT.Name)
			return
		}
	}
	if !hasTLS {
		t.fail(t.lineOf("decoy"), "decoy needs tls: without it, the web server in front shows the pages, so leave decoy out")
		return
	}
	s.Site = &website.Config{}
	l.decoy(t, s.Site)
	if _, ok := t.m["tls"].(map[string]any); !ok {
		t.fail(t.lineOf("tls"), "tls must be a table: write tls = { acme = \"www.example.com\" }, or tls = { cert = \"…\", key = \"…\" }")
		return
	}
	host := l.tls(t.sub("tls"), s)
	if hasURL(s) || t.isBad("options") {
		return
	}
	// The certificate tells the host, and the server makes the secret path itself. Without a
	// name it has been said what is wrong.
	if _, port, err := net.SplitHostPort(cmp.Or(s.Public, s.Bind.String())); err == nil && port != "443" {
		host = net.JoinHostPort(host, port)
	}
	s.Options = append(builtin.OptionsOf(host), s.Options...)
}

func hasURL(s *Serve) bool {
	_, ok := s.Options.Get("url")
	return ok
}

func (l *loading) decoy(t *table, site *website.Config) {
	text := t.pasted("decoy", TextPlain)
	if text == "" {
		return
	}
	shown := text
	if !strings.Contains(text, "://") {
		text, shown = l.path(text), l.shown(text)
	}
	if err := website.CheckDecoy(text); err != nil {
		t.fail(t.lineOf("decoy"), "decoy: %q: %v", shown, fileError(err))
	}
	site.Decoy = text
}

// fileError leaves out the path, and what was done with it.
func fileError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: correct its name, or make it", pe.Err)
		}
		return pe.Err
	}
	return err
}

// tls reads where the certificate comes from, and returns a name that it is for.
func (l *loading) tls(t *table, s *Serve) (name string) {
	name = "www.example.com" // after an error
	site := s.Site
	site.Name, site.Email, site.Directory = t.pasted("acme", TextName), t.pasted("email", TextPlain), t.pasted("directory", TextPlain)
	cert, key, ca := t.str("cert", ""), t.str("key", ""), t.str("ca", "")
	site.CertFile, site.KeyFile, site.CAFile = l.path(cert), l.path(key), l.path(ca)
	if text := t.pasted("http", TextPlain); text != "" {
		a, err := bindAddr(text)
		if err != nil {
			t.fail(t.lineOf("http"), "http: %v", err)
		} else {
			site.HTTP = a.String()
			l.binds = append(l.binds, bind{a, t, t.lineOf("http"), "http"})
		}
	}
	for _, key := range []string{"acme", "cert", "key"} {
		if t.isBad(key) {
			return name
		}
	}
	switch {
	case site.Name != "" && cert+key != "":
		t.fail(t.line(), "acme and cert are two ways to a certificate: leave one of them out")
	case site.Name != "":
		l.acme(t, s)
		name = site.Name
	case cert == "" && key == "":
		t.fail(t.line(), "write acme = \"www.example.com\" for a certificate from Let's Encrypt, or cert and key with the names of their files")
	case key == "":
		t.fail(t.line(), "cert needs key: name the file with the private key, too")
	case cert == "":
		t.fail(t.line(), "key needs cert: name the file with the certificate chain, too")
	default:
		if first := l.pair(t, s, l.shown(cert), l.shown(key)); first != "" {
			name = first
		}
	}
	if site.Name == "" {
		for _, key := range []string{"email", "directory", "ca"} {
			if t.has(key) && t.m["acme"] == nil {
				t.fail(t.lineOf(key), "%s is for acme: leave it out", key)
			}
		}
	}
	t.done()
	return name
}

func (l *loading) acme(t *table, s *Serve) {
	site := s.Site
	name, err := destination.Canonical(site.Name)
	_, notIP := netip.ParseAddr(site.Name)
	switch {
	case strings.Contains(site.Name, "://"):
		t.fail(t.lineOf("acme"), "acme: %q is a URL: write its host alone, as in \"www.example.com\"", site.Name)
	case strings.HasPrefix(site.Name, "*."):
		t.fail(t.lineOf("acme"), "acme: %q is for all names below one, for which the authority wants a proof that ptgate can't give: write one name, as in \"www%s\"", site.Name, site.Name[1:])
	case notIP == nil || err == nil && !strings.Contains(name, "."):
		t.fail(t.lineOf("acme"), "acme: %q is not a full host name, as in \"www.example.com\"", site.Name)
	case err != nil:
		t.fail(t.lineOf("acme"), "acme: %q: %s", site.Name, reason(err))
	default:
		site.Name = name
		t.warnOther(s, name, "acme")
		if s.Bind.IsValid() && s.Bind.Port() != 443 && site.HTTP == "" {
			t.warn(t.lineOf("acme"), "acme: the authority looks at port 443 of %q: lead that port to port %d, or add http = \"0.0.0.0:80\"", name, s.Bind.Port())
		}
	}
	if site.Email != "" && !strings.Contains(site.Email, "@") {
		t.fail(t.lineOf("email"), "email: %q is no address", site.Email)
	}
	if site.Directory != "" {
		if u, err := url.Parse(site.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
			t.fail(t.lineOf("directory"), "directory: it must be an https URL, as in \"https://acme-staging-v02.api.letsencrypt.org/directory\"")
		}
	}
	if site.CAFile != "" {
		if _, err := website.ReadRoots(site.CAFile); err != nil {
			t.fail(t.lineOf("ca"), "ca: %s: %v", l.shown(t.str("ca", "")), fileError(err))
		}
	}
}

// pair looks at a certificate and its key as the server will. It returns the first name of the
// certificate; "": there is none.
func (l *loading) pair(t *table, s *Serve, cert, key string) (name string) {
	c, err := website.ReadPair(s.Site.CertFile, s.Site.KeyFile)
	if err != nil {
		if e, ok := errors.AsType[*website.PairError](err); ok && e.Key {
			t.fail(t.lineOf("key"), "key: %s: %v", key, fileError(e.Err))
		} else {
			t.fail(t.lineOf("cert"), "cert: %s: %v", cert, fileError(err))
		}
		return ""
	}
	if i := slices.IndexFunc(c.Leaf.DNSNames, adapter.ValidHostName); i >= 0 {
		name = c.Leaf.DNSNames[i]
	} else if !hasURL(s) {
		t.fail(t.lineOf("cert"), "cert: %s is for no single name%s: add options = { url = \"https://www.example.com\" } with the name that clients use", cert, names(c.Leaf))
	}
	if info, err := os.Stat(s.Site.KeyFile); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		t.warn(t.lineOf("key"), "key: others can read it (mode %#o): chmod o-rwx %s", info.Mode().Perm(), key)
	}
	switch now := time.Now(); {
	case now.After(c.Leaf.NotAfter):
		t.warn(t.lineOf("cert"), "cert: %s has expired on %s: renew it", cert, c.Leaf.NotAfter.Format(time.DateOnly))
	case now.Before(c.Leaf.NotBefore):
		t.warn(t.lineOf("cert"), "cert: %s is not valid before %s: clients refuse it until then; is the clock of this machine right?", cert, c.Leaf.NotBefore.Format(time.DateOnly))
	}
	if host := hostOf(s); host != "" && !isPinned(s) && c.Leaf.VerifyHostname(host) != nil {
		t.warn(t.lineOf("cert"), "cert: %s is not for %q, the host of url%s: clients refuse it; get one for that name, or correct url", cert, host, names(c.Leaf))
	}
	return name
}

func names(c *x509.Certificate) string {
	if len(c.DNSNames) == 0 {
		return ""
	}
	return fmt.Sprintf(", but for %q", c.DNSNames)
}

// warnOther warns if the certificate will be for another name than the one that clients
// check.
func (t *table) warnOther(s *Serve, name, key string) {
	if host := hostOf(s); host != "" && !isPinned(s) && !strings.EqualFold(host, name) {
		t.warn(t.lineOf(key), "%s: the certificate is for %q, and url in options has %q", key, name, host)
	}
}

// hostOf is the host of the options' url.
func hostOf(s *Serve) string {
	raw, _ := s.Options.Get("url")
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// isPinned tells whether clients look at something else than the name.
func isPinned(s *Serve) bool {
	_, hash := s.Options.Get("cert")
	_, name := s.Options.Get("cert-domain")
	return hash || name
}

// proxies reads proxy_from.
func (l *loading) proxies(t *table, s *Serve) {
	s.ProxyFrom = t.prefixes("proxy_from")
	if len(s.ProxyFrom) > 0 && s.PT != nil && !s.PT.Builtin() {
		t.fail(t.lineOf("proxy_from"), "proxy_from is for a transport inside ptgate: the program of [pt.%s] does not read the PROXY protocol", s.PT.Name)
	}
	for _, p := range s.ProxyFrom {
		if p.Bits() == 0 {
			t.fail(t.lineOf("proxy_from"), "proxy_from has all addresses: then everybody can say to be somebody else; name the proxies")
		}
	}
}
