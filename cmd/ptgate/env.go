package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/gateway/config"
)

// noProxy is what programs reach without us: this machine.
const noProxy = "localhost,127.0.0.1,127.0.0.0/8,::1"

func newEnvCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print lines that make a shell's programs use the gateway",
		Long: `Print lines that make a shell's programs use the gateway of the configuration:

  eval "$(ptgate env)"            from here on
  eval "$(ptgate env --unset)"    and no longer: removes these variables, also
                                  what was in them before

Each variable names a proxy that the programs which read it understand:

  HTTP_PROXY, HTTPS_PROXY   an HTTP proxy, in both cases of letters
  all_proxy                 an HTTP proxy: curl, git, Python, aria2 and Chromium
                            look at it first, and some of them know no socks5h
  ALL_PROXY                 a SOCKS5 proxy: programs in Go look at it first, and
                            go around any other kind of proxy without a word

A port takes SOCKS5 and HTTP, so that all of them name the same one, the first of
listen.mixed. Where listen.socks5 or listen.http has ports for one protocol only, that
protocol's variables name the first of these. Where no port takes HTTP, all variables
name the first one of listen.socks5, and the other way round; then some programs fail,
or are not served. SOCKS5 addresses have the scheme socks5h, so that names are not
looked up on this machine. NO_PROXY keeps this machine's own addresses out of it; curl
obeys it even with -x, unless --noproxy '' is given. Unix sockets are left out.

User names and passwords of listen.users are never printed, for a program's
environment is open to others: give them to each program in its own way.`,
		Example: `  eval "$(ptgate env -c client.toml)"`,
		Args:    noArgs,
	}
	file := configFlag(cmd)
	unset := cmd.Flags().Bool("unset", false, "print lines that undo the others; needs no configuration")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *unset {
			for _, name := range []string{"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
				fmt.Fprintf(cmd.OutOrStdout(), "unset %s %s\n", name, strings.ToLower(name))
			}
			return nil
		}
		cfg, err := load(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		socks, web, err := proxyURLs(cfg.Listen)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.Path, err)
		}
		if len(cfg.Listen.Users) > 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "# the gateway asks for a user and password (listen.users); give them to each program yourself")
		}
		for _, v := range []struct{ name, upper, lower string }{
			{"ALL_PROXY", socks, web}, {"HTTPS_PROXY", web, web}, {"HTTP_PROXY", web, web}, {"NO_PROXY", noProxy, noProxy},
		} {
			fmt.Fprintf(cmd.OutOrStdout(), "export %s='%s' %s='%s'\n", v.name, v.upper, strings.ToLower(v.name), v.lower)
		}
		return nil
	}
	return cmd
}

// proxyURLs makes what programs are told of the first listener of each kind.
func proxyURLs(l config.Listen) (socks, web string, err error) {
	ports := func(lists ...[]string) []string { // Unix sockets have no URL that programs know
		return slices.DeleteFunc(slices.Concat(lists...), func(a string) bool { return strings.HasPrefix(a, config.UnixPrefix) })
	}
	if all := ports(l.SOCKS5, l.Mixed); len(all) > 0 {
		if socks, err = proxyURL("socks5h", all[0]); err != nil {
			return "", "", err
		}
	}
	if all := ports(l.HTTP, l.Mixed); len(all) > 0 {
		if web, err = proxyURL("http", all[0]); err != nil {
			return "", "", err
		}
	}
	switch {
	case socks == "" && web == "" && len(l.SOCKS5)+len(l.HTTP)+len(l.Mixed) > 0:
		return "", "", errors.New("all its listeners are Unix sockets, which no variable can name: give them to each program, as in curl --proxy socks5h://localhost/run/ptgate/proxy.sock, or add a port")
	case socks == "" && web == "":
		return "", "", fmt.Errorf("it has no listener for programs: env is for the box beside them")
	case socks == "":
		socks = web
	case web == "":
		web = socks
	}
	return socks, web, nil
}

func proxyURL(scheme, listener string) (string, error) {
	a, err := netip.ParseAddrPort(listener)
	switch {
	case err != nil:
		return "", fmt.Errorf("listener %q: %w", listener, err)
	case a.Port() == 0:
		return "", fmt.Errorf("listener %q gets another port each time: give it one", listener)
	}
	host := a.Addr()
	if host.IsUnspecified() { // also [::] takes IPv4, and this machine may have no IPv6
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return scheme + "://" + netip.AddrPortFrom(host, a.Port()).String(), nil
}
