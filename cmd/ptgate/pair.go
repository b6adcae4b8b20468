package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/routes"
)

func newPairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pair --address HOST:PORT",
		Short: "Make server.toml and client.toml that fit each other",
		Long: `Make server.toml, for the box at the far end, and client.toml, for the box beside
the programs, with fresh keys that fit each other. HOST is the server's public IP
address; with --transport webtunnel it may be a name.

Both files hold secrets: move them over a channel that you trust.`,
		Example: `  ptgate pair --address 198.51.100.7:8443
  ptgate pair --address www.example.com:443 --transport webtunnel --out keys`,
		SuggestFor: []string{"init", "keys", "new"},
		Args:       noArgs,
	}
	address := cmd.Flags().String("address", "", "`HOST:PORT` at which clients reach the server")
	transport := cmd.Flags().String("transport", "obfs4", strings.ReplaceAll(pairable(), " and ", " or "))
	completeFlag(cmd, "address", cobra.NoFileCompletions)
	completeFlag(cmd, "transport", cobra.FixedCompletions(pairableNames(), cobra.ShellCompDirectiveNoFileComp))
	out := cmd.Flags().String("out", ".", "`DIR` for the two files")
	completeFlag(cmd, "out", directories)
	add := cmd.Flags().Bool("add", false, "add a further way, of another transport or port, to the two files that are in --out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *out == "" {
			return usagef("--out is empty: give a directory")
		}
		if *address == "" {
			return usagef("pair needs --address HOST:PORT, where clients reach the server")
		}
		if *add {
			name, err := addPair(cmd.Context(), *address, *transport, *out)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "added the transport to %s, and [bridge.%s] to %s and its route; move the client's file, then `ptgate reload` on both sides\n",
				filepath.Join(*out, pairNames[0]), tomlKey(name), filepath.Join(*out, pairNames[1]))
			return nil
		}
		// A signal waits, so that there are both files or none, and no keys elsewhere.
		err := interruptible(cmd.Context(), func(context.Context) error { return writePair(*address, *transport, *out) })
		if err != nil {
			return err
		}
		for _, name := range pairNames {
			fmt.Fprintln(cmd.OutOrStdout(), "wrote", filepath.Join(*out, name))
		}
		if row, _ := builtin.Lookup(*transport); row.Front {
			fmt.Fprintln(cmd.OutOrStdout(), "first, on the server: the comments in server.toml have what nginx needs")
		}
		fmt.Fprintf(cmd.OutOrStdout(), `both are secret: server.toml stays on the server, client.toml goes to the client over a way that you trust
next, on the server:  ptgate run -c %s
and on the client:    ptgate run -c %s
then try it there:    curl -x socks5h://127.0.0.1:1080 https://example.com/
`, filepath.Join(*out, "server.toml"), filepath.Join(*out, "client.toml"))
		return nil
	}
	return cmd
}

var pairNames = []string{"server.toml", "client.toml"}

// writePair makes the two files in the directory out, or none.
func writePair(address, transport, out string) error {
	server, client, err := pair(address, transport)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	for _, name := range pairNames {
		if _, err := os.Lstat(filepath.Join(out, name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already; it may hold keys that clients use: move it away, or give --out", filepath.Join(out, name))
		}
	}
	if err := writeSecret(filepath.Join(out, pairNames[0]), server); err != nil {
		return err
	}
	if err := writeSecret(filepath.Join(out, pairNames[1]), client); err != nil {
		return errors.Join(err, os.Remove(filepath.Join(out, pairNames[0])))
	}
	return nil
}

// writeSecret makes a new file that only its owner reads, whole or not at all.
func writeSecret(path, text string) error {
	return durable.WriteNew(path, []byte(text), 0o600)
}

// newFile returns an error if a flag with the name of a new file is given, and that file can't be
// made. It is asked before anything else is done that only the file could tell of.
func newFile(cmd *cobra.Command, flag, name string) error {
	switch {
	case !cmd.Flags().Changed(flag):
		return nil
	case name == "":
		return usagef("--%s is empty: give a file", flag)
	}
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("--%s: %s is there already, and is not replaced: give another name", flag, name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".ptgate-*")
	if of, ok := errors.AsType[*fs.PathError](err); ok {
		err = of.Err // the name is that of no file that the user knows
	}
	if err != nil {
		return fmt.Errorf("--%s: no new file can be made in %s: %w", flag, filepath.Dir(name), err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// addPair adds a transport to the two files in the directory out, and returns the name of
// the client's bridge.
func addPair(ctx context.Context, address, transport, out string) (name string, err error) {
	row, t, err := pairRow(address, transport)
	if err != nil {
		return "", err
	}
	public := destination.Format(t)
	options, args, err := row.Pair(public)
	if err != nil {
		return "", err
	}
	server, client := filepath.Join(out, pairNames[0]), filepath.Join(out, pairNames[1])
	unlock, err := lockFile(server)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: --add is for two files that pair has made", err)
	}
	if err != nil {
		return "", err
	}
	defer unlock()
	old, problems := config.Load(client)
	if old == nil {
		return "", fmt.Errorf("%s has errors, the first: %v", client, problems[0])
	}
	name = row.Name
	for n := 2; slices.ContainsFunc(old.Bridges, func(b *config.Bridge) bool { return b.Name == name }); n++ {
		name = fmt.Sprintf("%s-%d", row.Name, n)
	}
	front := uint16(frontPort)
	if there, _ := config.Load(server); there != nil { // what is wrong with it shows below
		for slices.ContainsFunc(there.Serve, func(s *config.Serve) bool { return s.Bind.Port() == front }) {
			front++
		}
	}
	serve, err := serveText(row, t, front, options)
	if err != nil {
		return "", err
	}
	changes := []struct {
		path string
		edit func(doc []byte, mode fs.FileMode) ([]byte, error)
	}{{server, func(doc []byte, _ fs.FileMode) ([]byte, error) {
		return fmt.Appendf(doc, "\n# One more way%s", serve), nil
	}}, {client, func(doc []byte, mode fs.FileMode) ([]byte, error) {
		doc, err := addToRoute(client, doc, mode, "*", name)
		return fmt.Appendf(doc, "\n%s", bridgeText(row, name, public, args)), err
	}}}
	// Both are tried before one is written.
	for _, write := range []bool{false, true} {
		for _, c := range changes {
			err := replaceFile(ctx, c.path, func(doc []byte, mode fs.FileMode) ([]byte, error) {
				if len(doc) > 0 && doc[len(doc)-1] != '\n' {
					doc = append(doc, '\n')
				}
				doc, err := c.edit(doc, mode)
				if err != nil {
					return nil, err
				}
				if cfg, problems := config.Check(c.path, doc, mode); cfg == nil {
					return nil, fmt.Errorf("with the transport %s would have errors, the first: %v", c.path, problems[0])
				}
				if !write {
					return nil, errTried
				}
				return doc, nil
			})
			if err != nil && !errors.Is(err, errTried) {
				return "", err
			}
		}
	}
	return name, nil
}

// errTried keeps a file from being replaced.
var errTried = errors.New("tried only")

// pair makes the texts of the two files.
func pair(address, transport string) (server, client string, err error) {
	row, t, err := pairRow(address, transport)
	if err != nil {
		return "", "", err
	}
	public := destination.Format(t)
	options, args, err := row.Pair(public)
	if err != nil {
		return "", "", err
	}
	server, err = serverFile(row, t, options)
	return server, clientFile(row, public, args), err
}

// pairRow reads an address for a transport.
func pairRow(address, transport string) (*builtin.Transport, routes.Target, error) {
	none := routes.Target{}
	address, _, err := config.Pasted(address, config.TextName)
	if err != nil {
		return nil, none, usagef("--address: %v", err)
	}
	t, err := destination.Parse(address)
	if err != nil {
		return nil, none, usagef("--address %q: %v", address, err)
	}
	if noServer(t.Addr) {
		return nil, none, usagef("--address %q: clients can't go there: give the server's public address", address)
	}
	row, _ := builtin.Lookup(transport)
	switch {
	case row.Pair == nil:
		return nil, none, usagef("--transport %q: pair knows %s", transport, pairable())
	case !row.Placeholder && !t.Addr.IsValid():
		return nil, none, usagef("--address %q: %s needs the server's IP address, not a name: looking it up would tell the network where you go", address, transport)
	}
	return row, t, nil
}

// pairable names the transports that can be paired.
func pairable() string { return strings.Join(pairableNames(), " and ") }

func pairableNames() (names []string) {
	for _, row := range builtin.Transports() {
		if row.Pair != nil {
			names = append(names, row.Name)
		}
	}
	return names
}

const serverExit = `
[exit]
allow = ["*"]          # what clients may ask for: names, *.names, addresses, :ports
deny  = ["private"]    # and never this box's own network
`

const clientRoutes = `
[listen]
mixed = ["127.0.0.1:1080", "127.0.0.1:8118"]    # each takes SOCKS5, SOCKS4a and HTTP
# owners = "self"       # Linux: for nobody but you, if you start ptgate yourself

# Everything goes through the bridge. Routes are read from the top, the first that
# matches decides; add some above to block a name, or to reach one directly:
#
#   [[route]]
#   to  = ".example.org"
#   via = "block"
[[route]]
to  = "*"
via = "far"
`

// frontPort is where a server listens for the web server in front of it, or at one of the next
// ports.
const frontPort = 15000

// serverFile is the text of server.toml. public is where clients reach the server.
func serverFile(row *builtin.Transport, public routes.Target, options adapter.Args) (string, error) {
	serve, err := serveText(row, public, frontPort, options)
	return "# ptgate, the far end" + serve + serverExit, err
}

// serveText is a [[serve]], and what stands above it in a comment that has begun. front is the
// port for a web server in front of it.
func serveText(row *builtin.Transport, public routes.Target, front uint16, options adapter.Args) (string, error) {
	var b strings.Builder
	bind := netip.AddrPortFrom(netip.IPv4Unspecified(), public.Port)
	switch {
	case row.Front:
		raw, _ := options.Get("url")
		u, err := url.Parse(raw)
		if err != nil {
			return "", err
		}
		bind = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), front)
		fmt.Fprintf(&b, frontText, u.Host, u.Path, bind)
	case public.Addr.IsLoopback():
		bind = netip.AddrPortFrom(public.Addr, public.Port) // a trial on one machine
	case public.Addr.Is6():
		bind = netip.AddrPortFrom(netip.IPv6Unspecified(), public.Port)
	}
	if !row.Front {
		b.WriteString(". ")
	}
	fmt.Fprintf(&b, `Run it on the server: ptgate run -c server.toml
# The options are secret, and fit the args in client.toml.
[[serve]]
transport = %q
bind      = %q
`, row.Name, bind)
	if !row.Placeholder {
		fmt.Fprintf(&b, "public    = %q\n", destination.Format(public))
	}
	fmt.Fprintf(&b, "options   = { %s }\n", inlineTable(options))
	return b.String(), nil
}

// frontText says in a comment what the configuration of the web server needs.
const frontText = `, behind a web server that ends TLS for %s:
#
#   location = %s {    # nginx, inside the server block
#       proxy_pass         http://%s;
#       proxy_http_version 1.1;
#       proxy_set_header   Upgrade $http_upgrade;
#       proxy_set_header   Connection "upgrade";
#       proxy_set_header   X-Forwarded-For $remote_addr;
#       proxy_buffering    off;
#       proxy_read_timeout 1d;
#       access_log         off;
#   }
#
# `

// clientFile is the text of client.toml.
func clientFile(row *builtin.Transport, public string, args adapter.Args) string {
	return `# ptgate, beside your programs. Run it there: ptgate run -c client.toml
# The args are secret: whoever has them can use the server.
` + bridgeText(row, "far", public, args) + clientRoutes
}

// bridgeText is a [bridge.NAME].
func bridgeText(row *builtin.Transport, name, public string, args adapter.Args) string {
	address := fmt.Sprintf("%q", public)
	if row.Placeholder {
		address = fmt.Sprintf("%q    # a placeholder: the args say where to go", builtin.Placeholder)
	}
	return fmt.Sprintf("[bridge.%s]\ntransport = %q\naddress   = %s\nargs      = { %s }\n", tomlKey(name), row.Name, address, inlineTable(args))
}

// inlineTable is args as the inside of a TOML table. Go's %q is right for it: keys and
// values are of plain ASCII, which both languages quote in the same way.
func inlineTable(args adapter.Args) string {
	parts := make([]string, len(args))
	for i, a := range args {
		parts[i] = fmt.Sprintf("%s = %q", a.Key, a.Value)
	}
	return strings.Join(parts, ", ")
}
