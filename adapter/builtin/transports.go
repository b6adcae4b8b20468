package builtin

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/meeklite"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4"

	"ptgate/adapter"
)

// The transports that ship inside ptgate, as bridge lines and pt-spec spell them.
const (
	nameObfs4     = "obfs4"
	nameWebtunnel = "webtunnel"
	nameMeekLite  = "meek_lite"
)

// Placeholder is the address in the bridge lines of transports that do not use the
// address. It is from a network for documentation (RFC 5737).
const Placeholder = "192.0.2.1:443"

// A Transport has all facts about one transport: it is a row of the table. No other
// code compares names of transports. The zero Transport is one that is not known.
type Transport struct {
	Name string

	// Client and Server tell for which of the two sides there is a program, or code in
	// this package.
	Client, Server bool

	// Programs that speak the transport. The first one that is installed is used.
	// None: this package has the transport.
	Programs []string

	// InProcess says that the transport may run inside ptgate's own process. It may if
	// its code starts no goroutines: a panic in such a goroutine would end the
	// process, not only one connection.
	InProcess bool

	// Polled says that a connection is made of many short requests, and not of one TCP
	// connection. Such a connection can't end one direction alone, can't wait until
	// there is something to read, and has no deadlines.
	Polled bool

	// Args are those of a bridge line, Options those of a server.
	Args, Options Params

	// KeyOptions are the options that have the server's keys. If an operator gives
	// none, the server makes its own keys.
	KeyOptions []string

	// ownSecret tells whether a server with these options makes its secret itself, and keeps
	// it in the state directory. Nil: where the options have none of KeyOptions.
	ownSecret func(options adapter.Args) bool

	// Placeholder says that the transport does not connect to the address of a bridge
	// line. The args say where it connects to, and they may have a name. All other
	// transports connect to the address.
	Placeholder bool

	// Front says that a web server stands in front of the transport's server, at the
	// url of its options. That web server speaks TLS with the clients. It names the
	// client in X-Forwarded-For, so the client is known only after the request: see
	// ServerConfig.TrustedHops and ServerConfig.TrustedProxies.
	Front bool

	// Pair makes the options of a new server, with new keys, and the args of its
	// clients. public is the host:port at which clients reach the server. Nil: there
	// is no way to make them.
	Pair func(public string) (options, args adapter.Args, err error)

	secret *secretKind                    // see Rotate; nil: there is nothing to rotate
	web    func(adapter.Args) (Web, bool) // the web server that a client connects to; nil: there is none
	client func(stateDir string) (base.ClientFactory, error)
	listen func(*Listener) error // makes the keys, and sets accept and args
	prime  bool                  // the client's first read needs a push: see link
	drains bool                  // a read of relayBuffer bytes gets all that is decoded, and leaves less than one frame
	thin   bool                  // connections have what newThin takes away
	delays bool                  // the server keeps failed clients open for a while
	cost   cost                  // see HandshakeCost and WireCost; none: unknownCost
}

// Inside reports whether this package has the transport t.
func (t *Transport) Inside() bool { return t.Name != "" && len(t.Programs) == 0 }

// table has one row for each transport.
var table = []Transport{
	{
		Name:       nameObfs4,
		Client:     true,
		Server:     true,
		InProcess:  true,
		Args:       Params{Known: []string{"cert", "iat-mode", "node-id", "public-key"}, check: checkObfs4Args},
		Options:    Params{Known: append([]string{"iat-mode"}, obfs4Keys...), check: checkObfs4Options},
		KeyOptions: obfs4Keys,
		Pair:       pairObfs4,
		secret:     &obfs4Secret,
		client:     new(obfs4.Transport).ClientFactory,
		listen:     (*Listener).setUpObfs4,
		prime:      true,
		drains:     true,
		thin:       true,
		delays:     true,
		cost:       obfs4Cost,
	},
	{
		Name:        nameWebtunnel,
		Client:      true,
		Server:      true,
		InProcess:   true,
		Args:        Params{Known: webtunnelArgs, check: checkWebtunnel, doubt: doubtWebtunnel},
		Options:     Params{Known: webtunnelArgs, check: checkWebtunnel}, // it announces them to clients
		ownSecret:   hasNoPath,
		Placeholder: true,
		Front:       true,
		Pair:        pairWebtunnel,
		secret:      &webtunnelSecret,
		web:         webOf,
		client:      newWebtunnelClient,
		listen:      (*Listener).setUpWebtunnel,
		cost:        webtunnelCost,
	},
	{
		Name:        nameMeekLite,
		Client:      true,
		Polled:      true,
		Args:        Params{Known: []string{"url", "front", "targets", "utls"}, check: checkMeek},
		Placeholder: true,
		web:         webOf,
		client:      new(meeklite.Transport).ClientFactory,
		cost:        meekCost,
	},
	{Name: "obfs3", Client: true, Server: true, Programs: []string{"lyrebird", "obfs4proxy"}, cost: obfs3Cost},
	{Name: "obfs2", Client: true, Server: true, Programs: []string{"lyrebird", "obfs4proxy"}, cost: obfs2Cost},
	{Name: "scramblesuit", Client: true, Programs: []string{"lyrebird", "obfs4proxy"}, cost: scramblesuitCost},
	{Name: "snowflake", Client: true, Programs: []string{"snowflake-client", "lyrebird"}, Placeholder: true},
}

// Transports returns all rows of the table. The caller must not change them.
func Transports() []Transport { return table }

// Lookup returns the row of a transport. If the transport is not known, t is an empty
// row, not nil.
func Lookup(name string) (t *Transport, known bool) {
	for i := range table {
		if table[i].Name == name {
			return &table[i], true
		}
	}
	return new(Transport), false
}

// InProcess reports whether transport may run inside this process: see
// Transport.InProcess.
func InProcess(transport string) bool {
	t, _ := Lookup(transport)
	return t.InProcess
}

// Params describe the keys that a transport reads from a bridge line's args, or from a
// server's options.
type Params struct {
	// Known has all keys that the transport reads. Nil: they are not known.
	Known []string

	check func(args adapter.Args, pasted bool) []error
	doubt func(args adapter.Args) []string
}

// Doubts returns what is right in args, and is probably a mistake. It contains no value.
func (p *Params) Doubts(args adapter.Args) []string {
	if p.doubt == nil {
		return nil
	}
	return p.doubt(args)
}

// Check returns the errors in args that can be found without a connection. If pasted
// is true, the args come from a bridge line, and the errors say how to repair the
// line. No error contains a value.
func (p *Params) Check(args adapter.Args, pasted bool) []error {
	if p.check == nil {
		return nil
	}
	return p.check(args, pasted)
}

var obfs4Keys = []string{"node-id", "private-key", "drbg-seed"}

func checkObfs4Args(args adapter.Args, pasted bool) (errs []error) {
	cert, hasCert := args.Get("cert")
	_, hasID := args.Get("node-id")
	_, hasKey := args.Get("public-key")
	_, hasMode := args.Get("iat-mode")
	damage := ""
	if hasCert {
		damage = certDamage(cert)
	}
	switch {
	case !hasCert && !(hasID && hasKey):
		errs = append(errs, errors.New("obfs4 needs cert: copy the bridge line anew"))
	case damage != "":
		errs = append(errs, fmt.Errorf("cert is damaged: %s; copy the bridge line anew", damage))
	case !hasMode && pasted:
		errs = append(errs, errors.New("obfs4 needs iat-mode: the line may be cut off, then copy it anew; else add iat-mode=0 to it, inside the quotes"))
	}
	if !hasMode && !pasted {
		errs = append(errs, errors.New(`obfs4 needs iat-mode: write iat-mode = "0" if the bridge line has none`))
	}
	errs = append(errs, checkHex(args, obfs4KeyLengths)...)
	return append(errs, checkIATMode(args)...)
}

// certLength is that of an obfs4 cert: node ID and public key, 20 and 32 bytes, in
// base64 without its padding (obfs4-spec, section 4).
const certLength = 70

// certDamage tells why s can't be an obfs4 cert; "" if it can.
func certDamage(s string) string {
	const base64Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	if rest := strings.TrimRight(s, "="); len(rest) == certLength && rest != s {
		return "\"=\" stands at its end: take it out"
	}
	if odd := strings.TrimLeft(s, base64Letters); odd != "" {
		r, _ := utf8.DecodeRuneInString(odd)
		if r >= utf8.RuneSelf && r != utf8.RuneError { // it may look like a plain letter
			return fmt.Sprintf("character %d of it is %U, and only plain letters (a to z, A to Z), digits, \"+\" and \"/\" can stand there", len(s)-len(odd)+1, r)
		}
		return fmt.Sprintf("character %d of it is %q, and only letters, digits, \"+\" and \"/\" can stand there", len(s)-len(odd)+1, r)
	}
	if len(s) != certLength {
		return fmt.Sprintf("a whole one has %d characters, this one has %d", certLength, len(s))
	}
	return ""
}

func checkObfs4Options(options adapter.Args, _ bool) (errs []error) {
	n := 0
	for _, key := range obfs4Keys {
		if _, ok := options.Get(key); ok {
			n++
		}
	}
	if n != 0 && n != len(obfs4Keys) {
		errs = append(errs, errors.New("obfs4 takes node-id, private-key and drbg-seed together or, better, none: it makes its keys itself"))
	}
	errs = append(errs, checkHex(options, obfs4KeyLengths)...)
	return append(errs, checkIATMode(options)...)
}

// obfs4KeyLengths are the lengths of keys in hex, in characters.
var obfs4KeyLengths = map[string]int{"node-id": 2 * 20, "public-key": 2 * 32, "private-key": 2 * 32, "drbg-seed": 2 * 24}

func checkHex(args adapter.Args, lengths map[string]int) (errs []error) {
	for _, a := range args {
		want, ok := lengths[a.Key]
		if _, err := hex.DecodeString(a.Value); ok && (err != nil || len(a.Value) != want) {
			errs = append(errs, fmt.Errorf("%s is damaged: a whole one has %d characters, digits and a to f; copy it anew", a.Key, want))
		}
	}
	return errs
}

func checkIATMode(args adapter.Args) []error {
	for _, a := range args {
		if a.Key == "iat-mode" && a.Value != "0" && a.Value != "1" && a.Value != "2" {
			if v := strings.TrimRight(a.Value, ".,;:)]>'\"`\\"); v != a.Value && len(v) == 1 {
				return []error{fmt.Errorf("iat-mode can be 0, 1 or 2: take the %q behind it out", a.Value[1:])}
			}
			return []error{errors.New("iat-mode can be 0, 1 or 2")}
		}
	}
	return nil
}

// pairObfs4 has the transport make the keys.
func pairObfs4(string) (options, args adapter.Args, err error) {
	factory, made, err := tryObfs4("", nil, nil)
	if err != nil {
		return nil, nil, err
	}
	var state obfs4StateFile
	if err := json.Unmarshal(made[obfs4State], &state); err != nil {
		return nil, nil, err
	}
	options.Add("iat-mode", "0")
	options.Add("node-id", state.NodeID)
	options.Add("private-key", state.PrivateKey)
	options.Add("drbg-seed", state.DRBGSeed)
	return options, fromPT(*factory.Args()), nil
}

var webtunnelArgs = []string{"url", "ver", "addr", "servername", "sni-imitation", "utls", "cert", "cert-domain"}

func checkWebtunnel(args adapter.Args, pasted bool) (errs []error) {
	raw, ok := args.Get("url")
	if !ok {
		example := "url = \"https://example.com/secret-path\""
		if pasted {
			example = "\"url=https://example.com/secret-path\", without spaces: copy the bridge line anew"
		}
		errs = append(errs, fmt.Errorf("webtunnel needs url, as in %s", example))
	} else if u, err := checkURL(raw); err != nil {
		errs = append(errs, err)
	} else if err := sentWhole(u, raw); err != nil {
		errs = append(errs, err)
	}
	if addr, ok := args.Get("addr"); ok && !validHostPort(addr) {
		errs = append(errs, errors.New("addr must be a host and a port, as in \"192.0.2.10:443\""))
	}
	if hash, ok := args.Get("cert"); ok {
		if raw, err := base64.StdEncoding.DecodeString(hash); err != nil || len(raw) != sha256.Size {
			errs = append(errs, fmt.Errorf("cert is damaged: a whole one is %d characters of base64, the SHA-256 of the certificates", base64.StdEncoding.EncodedLen(sha256.Size)))
		}
	}
	return errs
}

// doubtWebtunnel tells of a url that is hardly that of a bridge.
func doubtWebtunnel(args adapter.Args) (doubts []string) {
	raw, _ := args.Get("url")
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil // checkWebtunnel tells of it
	}
	if u.Path == "" || u.Path == "/" {
		doubts = append(doubts, "url has no path, and that of a bridge has a secret one, as in \"https://example.com/secret-path\": copy the whole of it")
	}
	a, err := netip.ParseAddr(u.Hostname())
	if u.Scheme == "http" && (err != nil || !a.IsLoopback()) {
		doubts = append(doubts, "url begins with http://, so that the network sees the secret path and the tunnel: that of a bridge begins with https://")
	}
	return doubts
}

// sentWhole gives an error for a url with parts that webtunnel would ignore. It uses
// the host, the port and the path only.
func sentWhole(u *url.URL, raw string) error {
	switch {
	case u.User != nil:
		return errors.New("url has a user before its host, which webtunnel does not send: take it out, up to the \"@\"")
	case u.RawQuery != "" || u.ForceQuery:
		return errors.New("url has a query, which webtunnel does not send: take it out, from the \"?\" on")
	case strings.Contains(raw, "#"):
		return errors.New("url has a fragment, which nobody sends: take it out, from the \"#\" on")
	case strings.HasPrefix(u.Path, "//"):
		return errors.New("url has a path with two slashes in front, which webtunnel takes for a host: write one")
	}
	return nil
}

// checkURL reads a url. It must be that of a web server, with a host and a port to
// which a connection is possible.
func checkURL(raw string) (*url.URL, error) {
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, errors.New("url has a space in it: take it out, or write \"%20\" where one is meant")
	}
	u, err := url.Parse(raw)
	if err == nil && u.Opaque == "" && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" {
		host := u.Hostname()
		a, err := netip.ParseAddr(host)
		switch port := u.Port(); {
		case port != "" && !validPort(port):
			return nil, fmt.Errorf("url has port %s: ports go from 1 to 65535", port)
		case err == nil && a.Zone() != "":
			return nil, errors.New("url has an address with a zone, which leads nowhere from elsewhere: take out the \"%25\" and what follows, up to the \"]\"")
		case err == nil && a.Is6() == strings.HasPrefix(u.Host, "["), err != nil && adapter.ValidHostName(host):
			return u, nil
		case strings.ContainsFunc(host, func(r rune) bool { return r > '~' }):
			return nil, errors.New("url has a host with other than plain letters: write an international name in its encoded form, as in \"https://xn--bcher-kva.example/secret-path\"")
		}
	}
	if _, rest, _ := strings.Cut(raw, "://"); strings.Count(rest, ":") > 1 && !strings.HasPrefix(rest, "[") {
		return nil, errors.New("url has an IPv6 address without its brackets: write as in \"https://[2001:db8::1]/secret-path\"")
	}
	if strings.ContainsAny(raw[:min(1, len(raw))], "[(<{'\"`") {
		return nil, fmt.Errorf("url has %q at character 1, which is not part of it: take out what is around it, so that it is as in \"https://example.com/secret-path\"", raw[:1])
	}
	return nil, errors.New("url must be as in \"https://example.com/secret-path\"")
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func validHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !validPort(port) {
		return false
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Zone() == "" || err != nil && adapter.ValidHostName(host)
}

// checkMeek wants a url, or targets, which is a list of urls.
func checkMeek(args adapter.Args, _ bool) []error {
	if _, ok := args.Get("targets"); ok {
		return nil
	}
	raw, ok := args.Get("url")
	if !ok {
		return []error{errors.New("meek_lite needs url, as in url = \"https://example.com/\"")}
	}
	if _, err := checkURL(raw); err != nil {
		return []error{err}
	}
	return nil
}

// A Web is the web server that a bridge's args name.
type Web struct {
	Addr string // host:port of the connection
	Name string // the server name for TLS, and that of the certificate; "": there is no TLS
	Host string // in the request
	Path string
}

// WebOf returns the web server of a bridge of that transport; ok is false if it has none.
func WebOf(transport string, args adapter.Args) (w Web, ok bool) {
	t, _ := Lookup(transport)
	if t.web == nil {
		return Web{}, false
	}
	return t.web(args)
}

func webOf(args adapter.Args) (w Web, ok bool) {
	raw, _ := args.Get("url")
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return Web{}, false
	}
	name, port := u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	w = Web{Host: u.Host, Path: cmp.Or(u.EscapedPath(), "/")}
	if front, ok := args.Get("front"); ok {
		name = front
		if host, p, err := net.SplitHostPort(front); err == nil {
			name, port = host, p
		}
	}
	w.Addr = net.JoinHostPort(name, port)
	if addr, ok := args.Get("addr"); ok {
		w.Addr = addr
	}
	if u.Scheme == "https" {
		w.Name = name
	}
	return w, true
}

// KeepsSecret tells whether a server with these options makes its secret itself, and keeps it
// in its state directory. When that is lost, clients need new bridge lines.
func (t *Transport) KeepsSecret(options adapter.Args) bool {
	if t.ownSecret != nil {
		return t.ownSecret(options)
	}
	return !slices.ContainsFunc(options, func(a adapter.Arg) bool { return slices.Contains(t.KeyOptions, a.Key) })
}

// OptionsOf are those of a website for a transport with a web server in front: host is what
// visitors dial, without the port of https. The server makes the secret path itself.
func OptionsOf(host string) adapter.Args {
	u := url.URL{Scheme: "https", Host: host}
	return adapter.Args{{Key: "url", Value: u.String()}}
}

// hasNoPath tells whether a url leaves the secret path to the server.
func hasNoPath(options adapter.Args) bool {
	raw, _ := options.Get("url")
	u, err := url.Parse(raw)
	return err == nil && u.Host != "" && u.Path == ""
}

func newPath() string { return "/" + rand.Text() }

// pairWebtunnel makes a path that nobody can guess. Only the path keeps strangers out.
func pairWebtunnel(public string) (options, args adapter.Args, err error) {
	u := url.URL{Scheme: "https", Host: strings.TrimSuffix(public, ":443"), Path: newPath()}
	args.Add("url", u.String())
	return args, args, nil
}
