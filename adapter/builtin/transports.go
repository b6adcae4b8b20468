package builtin

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/base"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/meeklite"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/webtunnel"

	"ptgate/adapter"
)

// The transports that ship inside ptgate, as bridge lines and pt-spec spell them.
const (
	nameObfs4     = "obfs4"
	nameWebtunnel = "webtunnel"
	nameMeekLite  = "meek_lite"
)

// Placeholder is the address that stands in a bridge line where nothing is
// dialled at it. It is one of a network for documentation (RFC 5737).
const Placeholder = "192.0.2.1:443"

// A Transport is all that ptgate knows of one transport: a row of the table.
// Nothing else tells transports apart by name. The zero Transport is one that is
// not known.
type Transport struct {
	Name string

	// Client and Server are the roles that it can be had in.
	Client, Server bool

	// Programs speak it, to be looked for in this order. None: it is one of ours.
	Programs []string

	// InProcess says that it may run inside the process that carries everything
	// else. That is so where its code starts no goroutine of its own: a panic in
	// one could not be turned into an error of one connection.
	InProcess bool

	// Polled says that a connection is made of requests that come and go, and not
	// of one TCP connection. So it can neither half-close nor wait for readability
	// nor keep deadlines. Of the transports of other programs no connection can.
	Polled bool

	// Args are those of a bridge line, Options those of a server.
	Args, Options Params

	// KeyOptions are the options that are the server's keys. Where an operator
	// gives none, it makes its own.
	KeyOptions []string

	// NoKeys says that the server has no keys of its own. Others keep theirs in
	// their state directory, and whoever loses these has to give out new bridge
	// lines.
	NoKeys bool

	// Placeholder says that nothing is dialled at the address of a bridge line:
	// the args say where to go, by name if they like. Else the address is dialled,
	// and it must be literal: to look a name up would tell the network where the
	// bridge is.
	Placeholder bool

	// Front says that a web server stands in front of the server, at the url of
	// its options. It ends TLS, and its X-Forwarded-For names the client, who is
	// not known before the handshake.
	Front bool

	// Pair makes what two boxes need that are to fit each other: the server's
	// options, with fresh keys, and the client's args. Clients reach the server at
	// public, host:port. Nil: it can't be done.
	Pair func(public string) (options, args adapter.Args, err error)

	client  func(stateDir string) (base.ClientFactory, error)
	listen  func(*Listener) error // makes the keys, and sets accept and args
	upgrade bool                  // the client's handshake is an HTTP upgrade, without bounds of its own
	prime   bool                  // the client's first read needs a push: see link
	drains  bool                  // a read of relayBuffer bytes gets all that is decoded, and leaves less than one frame
	delays  bool                  // the server keeps failed clients open for a while
}

// Inside reports whether t is one of ours.
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
		client:     new(obfs4.Transport).ClientFactory,
		listen:     (*Listener).setUpObfs4,
		prime:      true,
		drains:     true,
		delays:     true,
	},
	{
		Name:        nameWebtunnel,
		Client:      true,
		Server:      true,
		InProcess:   true,
		Args:        Params{Known: webtunnelArgs, check: checkWebtunnel},
		Options:     Params{Known: webtunnelArgs, check: checkWebtunnel}, // it announces them to clients
		NoKeys:      true,
		Placeholder: true,
		Front:       true,
		Pair:        pairWebtunnel,
		client:      webtunnel.Transport.ClientFactory,
		listen:      (*Listener).setUpWebtunnel,
		upgrade:     true,
	},
	{
		Name:        nameMeekLite,
		Client:      true,
		Polled:      true,
		Args:        Params{Known: []string{"url", "front", "targets", "utls"}},
		Placeholder: true,
		client:      new(meeklite.Transport).ClientFactory,
	},
	{Name: "obfs3", Client: true, Server: true, Programs: []string{"lyrebird", "obfs4proxy"}},
	{Name: "obfs2", Client: true, Server: true, Programs: []string{"lyrebird", "obfs4proxy"}},
	{Name: "scramblesuit", Client: true, Server: true, Programs: []string{"lyrebird", "obfs4proxy"}},
	{Name: "snowflake", Client: true, Programs: []string{"snowflake-client", "lyrebird"}, Placeholder: true},
}

// Transports are all rows of the table. They must not be changed.
func Transports() []Transport { return table }

// Lookup gives the row of a transport. Of one that is not known, the row is
// empty, but never nil.
func Lookup(name string) (t *Transport, known bool) {
	for i := range table {
		if table[i].Name == name {
			return &table[i], true
		}
	}
	return new(Transport), false
}

// InProcess reports whether transport may run inside this process: see the field
// of Transport.
func InProcess(transport string) bool {
	t, _ := Lookup(transport)
	return t.InProcess
}

// Params are what a transport reads of a bridge line's args, or of a server's
// options.
type Params struct {
	// Known are all keys that it reads. Nil: nobody knows.
	Known []string

	check func(args adapter.Args, pasted bool) []error
}

// Check reports what is wrong with args, as far as that can be known without a
// connection. pasted: they come from a bridge line, which the advice is for. The
// errors quote no value.
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
	return append(errs, checkIATMode(args)...)
}

// certLength is that of an obfs4 cert: node ID and public key, 20 and 32 bytes, in
// base64 without its padding (obfs4-spec, section 4).
const certLength = 70

// certDamage tells why s can't be an obfs4 cert; "" if it can.
func certDamage(s string) string {
	raw, err := base64.RawStdEncoding.DecodeString(s)
	switch {
	case len(s) != certLength:
		return fmt.Sprintf("a whole one has %d characters, this one has %d", certLength, len(s))
	case err != nil || len(raw) != 20+32:
		return "it has other characters than letters, digits, \"+\" and \"/\""
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
	return append(errs, checkIATMode(options)...)
}

func checkIATMode(args adapter.Args) []error {
	for _, a := range args {
		if a.Key == "iat-mode" && a.Value != "0" && a.Value != "1" && a.Value != "2" {
			return []error{errors.New("iat-mode can be 0, 1 or 2")}
		}
	}
	return nil
}

// pairObfs4 has the transport make the keys.
func pairObfs4(string) (options, args adapter.Args, err error) {
	dir, err := os.MkdirTemp("", "ptgate-pair-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	l := Listener{cfg: ServerConfig{Transport: nameObfs4, StateDir: dir}}
	if err := l.setUpObfs4(); err != nil {
		return nil, nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "obfs4_state.json"))
	if err != nil {
		return nil, nil, err
	}
	var state struct {
		NodeID     string `json:"node-id"`
		PrivateKey string `json:"private-key"`
		DRBGSeed   string `json:"drbg-seed"`
	}
	if err := json.Unmarshal(b, &state); err != nil {
		return nil, nil, err
	}
	options.Add("iat-mode", "0")
	options.Add("node-id", state.NodeID)
	options.Add("private-key", state.PrivateKey)
	options.Add("drbg-seed", state.DRBGSeed)
	return options, l.args, nil
}

var webtunnelArgs = []string{"url", "ver", "addr", "servername", "sni-imitation", "utls", "cert", "cert-domain"}

func checkWebtunnel(args adapter.Args, _ bool) []error {
	raw, ok := args.Get("url")
	if !ok {
		return []error{errors.New("webtunnel needs url, as in url = \"https://example.com/secret-path\"")}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return []error{errors.New("url must be as in \"https://example.com/secret-path\"")}
	}
	return nil
}

// pairWebtunnel makes a path that nobody can guess: it is all that keeps others
// out.
func pairWebtunnel(public string) (options, args adapter.Args, err error) {
	u := url.URL{Scheme: "https", Host: strings.TrimSuffix(public, ":443"), Path: "/" + rand.Text()}
	args.Add("url", u.String())
	return args, args, nil
}
