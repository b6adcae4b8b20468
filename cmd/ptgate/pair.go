package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/adapter/builtin"
	"ptgate/gateway/dest"
)

func newPairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pair --address HOST:PORT",
		Short: "Make server.toml and client.toml that fit each other",
		Long: `Make server.toml, for the box at the far end, and client.toml, for the box beside
the programs, with fresh keys that fit each other. HOST is the server's public IP
address; with --transport webtunnel it may be a name.

Both files hold secrets: move them over a channel that you trust.`,
		Args: noArgs,
	}
	address := cmd.Flags().String("address", "", "`HOST:PORT` at which clients reach the server")
	transport := cmd.Flags().String("transport", "obfs4", "obfs4 or webtunnel")
	out := cmd.Flags().String("out", ".", "`DIR` for the two files")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *address == "" {
			return usagef("pair needs --address HOST:PORT, where clients reach the server")
		}
		server, client, err := pair(*address, *transport)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(*out, 0o700); err != nil {
			return err
		}
		files := []struct{ name, text string }{{"server.toml", server}, {"client.toml", client}}
		for _, f := range files {
			if _, err := os.Lstat(filepath.Join(*out, f.name)); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is there already; it may hold keys that clients use: move it away, or give --out", filepath.Join(*out, f.name))
			}
		}
		for _, f := range files {
			path := filepath.Join(*out, f.name)
			if err := writeSecret(path, f.text); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "wrote", path)
		}
		if *transport == "webtunnel" {
			fmt.Fprintln(cmd.OutOrStdout(), "first, on the server: the comments in server.toml have what nginx needs")
		}
		fmt.Fprintf(cmd.OutOrStdout(), "on the server:        ptgate run -c %s\n"+
			"on the client:        ptgate run -c %s\n"+
			"then, on the client:  curl -x socks5h://127.0.0.1:1080 https://example.com/\n",
			filepath.Join(*out, "server.toml"), filepath.Join(*out, "client.toml"))
		return nil
	}
	return cmd
}

// writeSecret makes a new file that only its owner reads.
func writeSecret(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// pair makes the texts of the two files.
func pair(address, transport string) (server, client string, err error) {
	t, err := dest.Parse(address)
	if err != nil {
		return "", "", usagef("--address %q: %v", address, err)
	}
	if t.Addr.IsUnspecified() {
		return "", "", usagef("--address %q: clients can't go there: give the server's public address", address)
	}
	switch transport {
	case "obfs4":
		if !t.Addr.IsValid() {
			return "", "", usagef("--address %q: obfs4 needs the server's IP address, not a name: looking it up would tell the network where you go", address)
		}
		return pairObfs4(netip.AddrPortFrom(t.Addr, t.Port))
	case "webtunnel":
		host := t.Name
		if t.Addr.IsValid() {
			host = t.Addr.String()
		}
		server, client = pairWebtunnel(host, t.Port)
		return server, client, nil
	}
	return "", "", usagef("--transport %q: pair knows obfs4 and webtunnel", transport)
}

const serverExit = `
[exit]
allow = ["*"]          # what clients may ask for: names, *.names, addresses, :ports
deny  = ["private"]    # and never this box's own network
`

const clientRoutes = `
[listen]
socks5 = "127.0.0.1:1080"
http   = "127.0.0.1:8118"

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

// obfs4Keys are an obfs4 server's, as its state file has them.
type obfs4Keys struct {
	NodeID     string `json:"node-id"`
	PrivateKey string `json:"private-key"`
	DRBGSeed   string `json:"drbg-seed"`
}

func pairObfs4(addr netip.AddrPort) (server, client string, err error) {
	dir, err := os.MkdirTemp("", "ptgate-pair-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	// The transport makes the keys itself when it first listens.
	ln, err := builtin.Listen(builtin.ServerConfig{Transport: "obfs4", StateDir: dir, Bind: "127.0.0.1:0"})
	if err != nil {
		return "", "", err
	}
	ln.Close()
	b, err := os.ReadFile(filepath.Join(dir, "obfs4_state.json"))
	if err != nil {
		return "", "", err
	}
	var keys obfs4Keys
	if err := json.Unmarshal(b, &keys); err != nil {
		return "", "", err
	}
	args := make([]string, 0, 2)
	for _, a := range ln.Args() {
		args = append(args, fmt.Sprintf("%s = %q", a.Key, a.Value))
	}
	bind := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	if addr.Addr().Is6() {
		bind = netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	if addr.Addr().IsLoopback() {
		bind = addr // a trial on one machine
	}
	server = fmt.Sprintf(`# ptgate, the far end. Run it on the server: ptgate run -c server.toml
# The keys below are secret, and fit the cert in client.toml.
[[serve]]
transport = "obfs4"
bind      = %q
public    = %q
options   = { iat-mode = "0", node-id = %q, private-key = %q, drbg-seed = %q }
%s`, bind, addr, keys.NodeID, keys.PrivateKey, keys.DRBGSeed, serverExit)
	client = fmt.Sprintf(`# ptgate, beside your programs. Run it there: ptgate run -c client.toml
# The cert is a secret: whoever has it can use the server.
[bridge.far]
transport = "obfs4"
address   = %q
args      = { %s }
%s`, addr, strings.Join(args, ", "), clientRoutes)
	return server, client, nil
}

// webtunnelPort is where the server's part listens for the web server.
const webtunnelPort = 15000

func pairWebtunnel(host string, port uint16) (server, client string) {
	path := rand.Text()
	url := "https://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/" + path
	if port == 443 && !strings.Contains(host, ":") {
		url = "https://" + host + "/" + path
	}
	server = fmt.Sprintf(`# ptgate, the far end, behind a web server that ends TLS for %s:
#
#   location = /%s {                      # nginx, inside the server block
#       proxy_pass         http://127.0.0.1:%d;
#       proxy_http_version 1.1;
#       proxy_set_header   Upgrade $http_upgrade;
#       proxy_set_header   Connection "upgrade";
#       proxy_set_header   X-Forwarded-For $remote_addr;
#       proxy_buffering    off;
#       proxy_read_timeout 1d;
#       access_log         off;
#   }
#
# Run it on the server: ptgate run -c server.toml. The path is a secret.
[[serve]]
transport = "webtunnel"
bind      = "127.0.0.1:%d"
options   = { url = %q }
%s`, host, path, webtunnelPort, webtunnelPort, url, serverExit)
	client = fmt.Sprintf(`# ptgate, beside your programs. Run it there: ptgate run -c client.toml
# The path in the URL is a secret: whoever has it can use the server.
[bridge.far]
transport = "webtunnel"
address   = "192.0.2.1:443"    # a placeholder: webtunnel goes where its url says
args      = { url = %q }
%s`, url, clientRoutes)
	return server, client
}
