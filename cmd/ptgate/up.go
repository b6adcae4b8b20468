package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/users"
	"ptgate/routes"
	"ptgate/systemd"
)

func newUpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "On a server: all in one: a configuration, the service, and one invitation",
		Long: `On a server: make a configuration if there is none, see that its ports can be had, say
what the firewall has to let through, start it, and print one invitation.  ptgate join LINK
on the other side does the rest.

An IP address in --address is served by obfs4. A name is served by webtunnel, which looks
like a website: on port 443, with nothing in front, and with a certificate of Let's
Encrypt, whose terms you then accept. Both may be given; each has a port of its own.

As root under systemd a system service is installed and started. Elsewhere, and with
--front, it runs until it is stopped. What is not given as a flag is asked for on a terminal.

Given again, it starts what does not run, and changes nothing else.`,
		Example: `  ptgate up --address 198.51.100.7
  ptgate up --address www.example.com --address 198.51.100.7:8443 --name alice --yes
  ptgate up -c server.toml --address 198.51.100.7:8443 --front`,
		SuggestFor: []string{"setup", "install"},
		Args:       noArgs,
	}
	u := up{cmd: cmd}
	file := configFlag(cmd)
	addresses := cmd.Flags().StringArray("address", nil, "`HOST[:PORT]` at which clients reach this server (port 443, if none is given); may be given several times")
	cmd.Flags().StringVar(&u.transport, "transport", "", "the transport of all addresses, instead of the one that fits each: "+strings.ReplaceAll(pairable(), " and ", " or "))
	cmd.Flags().StringVar(&u.directory, "acme-directory", "", "the `URL` of the directory of another authority than Let's Encrypt")
	cmd.Flags().StringVar(&u.ca, "acme-ca", "", "`FILE` with the certificates that sign that authority's own, where the system does not know them")
	cmd.Flags().StringVar(&u.decoy, "decoy", "", "what the website shows: a `DIRECTORY`, or http://127.0.0.1:8080")
	cmd.Flags().StringVar(&u.name, "name", "", "`NAME` of the user that is invited")
	cmd.Flags().BoolVar(&u.front, "front", false, "run in front, and install no service")
	cmd.Flags().BoolVar(&u.noStart, "no-start", false, "start nothing: only the configuration and the invitation")
	u.ask.cmd = cmd
	cmd.Flags().BoolVar(&u.ask.yes, "yes", false, "answer every question with yes; the user's name is \"me\", if --name gives none")
	cmd.Flags().BoolVar(&u.qr, "qr", false, "draw the invitation as a QR code, too")
	cmd.Flags().StringVar(&u.out, "out", "", "write the invitation to a new `FILE` (mode 0600), and do not print it")
	for _, flag := range []string{"address", "acme-directory", "name"} {
		completeFlag(cmd, flag, cobra.NoFileCompletions)
	}
	completeFlag(cmd, "transport", cobra.FixedCompletions(pairableNames(), cobra.ShellCompDirectiveNoFileComp))
	completeFlag(cmd, "decoy", directories)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return u.run(*file, *addresses)
	}
	return cmd
}

// An up is a call of the command. Its fields are the flags.
type up struct {
	cmd              *cobra.Command
	ask              questions
	transport, decoy string
	directory, ca    string // of the authority; "": Let's Encrypt
	name             string // of the user that is invited
	out              string // the file for the invitation; "": it is printed
	front, noStart   bool
	qr               bool
}

// run does what is missing until somebody can join.
func (u *up) run(file string, addresses []string) error {
	stderr := u.cmd.ErrOrStderr()
	if u.decoy != "" && !strings.Contains(u.decoy, "://") { // in the file, it would be looked for beside that
		dir, err := filepath.Abs(u.decoy)
		if err != nil {
			return err
		}
		u.decoy = dir
	}
	path, cfg, fresh, err := u.configuration(file, addresses)
	if err != nil {
		return err
	}
	who, err := u.invited(path, cfg)
	if err != nil {
		return err
	}
	_, err = running(u.cmd.Context(), path, "")
	runs := err == nil
	if runs {
		fmt.Fprintf(stderr, "# a ptgate runs already with %s\n", path)
	}
	starts := !runs && !u.noStart
	if starts {
		if err := bindable(cfg); err != nil {
			return err
		}
	}
	if fresh != "" {
		warnNear(stderr, cfg)
		oneWay(stderr, cfg)
	}
	firewall(stderr, cfg)
	where, err := filepath.Abs(path) // the service is elsewhere
	if err != nil {
		return err
	}
	service := false
	if starts && !u.front {
		if service, err = u.wantsService(where); err != nil {
			return err
		}
	}
	if fresh != "" {
		if err := u.write(path, fresh); err != nil {
			return err
		}
		for _, s := range cfg.Serve {
			if s.Site != nil && s.Site.Name != "" {
				fmt.Fprintf(stderr, "# the certificate of %s is asked for when the server starts. %s works when the log says: there is a new certificate\n", s.Site.Name, s.Transport)
			}
		}
	}
	if service {
		if err := u.install(where, cfg.Exit.UsersFile); err != nil {
			return err
		}
	}
	if who != "" {
		if err := u.invite(path, cfg, who, runs || service); err != nil {
			return err
		}
	}
	if u.noStart && !runs {
		fmt.Fprintf(stderr, "# start it:  ptgate run -c %s\n", path)
	}
	if !starts || service {
		return nil
	}
	fmt.Fprintf(stderr, "# running, until Ctrl-C; later:  ptgate run%s\n", dashC(cfg.Path))
	if cfg, err = loadErrors(path, stderr); err != nil { // the users are new
		return err
	}
	return runGateway(u.cmd.Context(), cfg, stderr)
}

// invited is the user to invite; "": that one is there already, or others are and none was
// named.
func (u *up) invited(path string, cfg *config.Config) (who string, err error) {
	who = u.name
	named := u.cmd.Flags().Changed("name")
	if !named {
		if who, err = u.who(cfg); err != nil {
			return "", err
		}
	}
	if who != "" || named {
		if err := users.CheckName(who); err != nil {
			return "", usagef("--name: %w", err)
		}
	}
	switch {
	case who == "":
		fmt.Fprintf(u.cmd.ErrOrStderr(), "# %s has users already; another invitation:  ptgate invite -c %[1]s NAME\n", path)
		return "", nil
	case slices.ContainsFunc(cfg.Exit.FileUsers, func(o users.User) bool { return o.Name == who }):
		fmt.Fprintf(u.cmd.ErrOrStderr(), "# %s is invited already; a new link, which ends the one before:  ptgate invite -c %s --again %[1]s\n", who, path)
		return "", nil
	}
	return who, newFile(u.cmd, "out", u.out)
}

// invite makes the user, and gives the link out. runs: a ptgate has to hear of the user.
func (u *up) invite(path string, cfg *config.Config, who string, runs bool) error {
	link, err := invite(u.cmd, path, cfg, users.User{Name: who}, false)
	if err != nil {
		return err
	}
	if runs {
		announceUser(u.cmd, path, cfg)
	}
	if u.out == "" {
		fmt.Fprintf(u.cmd.ErrOrStderr(), "# one line for %s, and a secret. On the other side:  ptgate join LINK\n", who)
	}
	return giveLink(u.cmd, path, who, link, u.out, u.qr)
}

// configuration is the one that there is, or a new one, with its text.
func (u *up) configuration(file string, addresses []string) (path string, cfg *config.Config, fresh string, err error) {
	path, err = config.Find(file)
	other := path == serviceConfig && path != cmp.Or(file, os.Getenv("PTGATE_CONFIG")) && os.Geteuid() != 0
	if err != nil || other { // there is none in any place, or it is the system's
		path = serviceConfig
		if os.Geteuid() != 0 {
			dir, err := os.UserConfigDir()
			if err != nil {
				return "", nil, "", fmt.Errorf("%w: name a file with -c", err)
			}
			path = filepath.Join(dir, "ptgate", "ptgate.toml")
		}
	}
	if _, err := os.Lstat(path); err == nil {
		if cfg, err = loadErrors(path, u.cmd.ErrOrStderr()); err != nil {
			return "", nil, "", err
		}
		if len(cfg.Serve) > 0 {
			switch same, err := u.serves(cfg, addresses); {
			case err != nil:
				return "", nil, "", err
			case !same:
				return "", nil, "", usagef("%s is there already, and says what is served: leave --address, --transport, --decoy and --acme-... out, or name another file with -c", path)
			}
			return path, cfg, "", hasUsersFile(cfg)
		}
		if !doesNothing(cfg) {
			return "", nil, "", fmt.Errorf("%s has no [[serve]]: it is for the box beside the programs. Name another file with -c", path)
		}
	}
	if len(addresses) == 0 {
		answer, _ := u.ask.ask("At which address do clients reach this server (its public IP address, for obfs4; a name, for webtunnel; or both, as in www.example.com 198.51.100.7:8443)?")
		if addresses = strings.Fields(answer); len(addresses) == 0 {
			return "", nil, "", usagef("up needs --address HOST[:PORT], where clients reach this server")
		}
	}
	text, err := u.serverText(path, addresses)
	if err != nil {
		return "", nil, "", err
	}
	cfg, problems := config.Check(path, []byte(text), 0o600)
	if cfg == nil { // all that can be wrong in it are the values of the flags
		return "", nil, "", usagef("no configuration comes of these addresses and flags: %s", errorsIn(problems))
	}
	return path, cfg, text, nil
}

// errorsIn are the errors of a configuration that is not written yet: without its file and lines.
func errorsIn(problems []config.Problem) string {
	var texts []string
	for _, p := range problems {
		if !p.Warning {
			texts = append(texts, p.Message)
		}
	}
	return strings.Join(texts, "; ")
}

// serves tells whether cfg serves what the flags say, and nothing else. Without them it does.
func (u *up) serves(cfg *config.Config, addresses []string) (bool, error) {
	if len(addresses) == 0 {
		return u.transport+u.decoy+u.directory+u.ca == "", nil
	}
	for _, address := range addresses {
		t, err := upAddress(address)
		if err != nil {
			return false, err
		}
		row, err := u.row(t)
		if err != nil {
			return false, err
		}
		if !slices.ContainsFunc(cfg.Serve, func(s *config.Serve) bool {
			switch {
			case s.Transport != row.Name || s.Bind.Port() != t.Port:
				return false
			case row.Front:
				return s.Site != nil && s.Site.Name == t.Name && (u.decoy == "" || u.decoy == s.Site.Decoy || sameFile(u.decoy, s.Site.Decoy)) && (u.directory == "" || u.directory == s.Site.Directory)
			}
			return s.Public == destination.Format(t)
		}) {
			return false, nil
		}
	}
	return len(addresses) == len(cfg.Serve), nil
}

// doesNothing tells whether a file is like the one that a package installs
// (configs/default.toml): it says no more than that everything is refused.
func doesNothing(cfg *config.Config) bool {
	return len(cfg.Serve) == 0 && len(cfg.Bridges) == 0 && !slices.ContainsFunc(cfg.Routes, func(r *config.Route) bool { return r.Action != config.ActionBlock })
}

// write writes a new configuration. One that is there does nothing, and is replaced.
func (u *up) write(path, text string) error {
	if _, err := os.Lstat(path); err == nil {
		fmt.Fprintf(u.cmd.ErrOrStderr(), "# wrote %s, in place of one that refused everything\n", path)
		return replaceFile(u.cmd.Context(), path, func([]byte, fs.FileMode) ([]byte, error) { return []byte(text), nil })
	}
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755 // the service looks into it
	}
	if err := os.MkdirAll(filepath.Dir(path), mode); err != nil {
		return err
	}
	if err := writeSecret(path, text); err != nil {
		return err
	}
	fmt.Fprintln(u.cmd.ErrOrStderr(), "# wrote", path)
	return nil
}

// usersFileFor is the name of the file with the users of a new configuration. Those of another
// configuration beside it stay its own: who is let in there has no invitation to this server. A
// file that no configuration names has been copied there, and is taken.
func usersFileFor(path string) string {
	name := filepath.Join(filepath.Dir(path), "users")
	beside, _ := os.ReadDir(filepath.Dir(path)) // it may have to be made
	for _, e := range beside {
		if !isFile(e.Name()) || e.Name() == filepath.Base(path) {
			continue
		}
		other := filepath.Join(filepath.Dir(path), e.Name())
		cfg, _ := config.Load(other)
		taken := cfg != nil && sameFile(cfg.Exit.UsersFile, name)
		if cfg == nil { // it has errors, and may be mended later
			text, _ := os.ReadFile(other)
			taken = bytes.Contains(text, []byte("users_file"))
		}
		if taken {
			return strings.TrimSuffix(filepath.Base(path), ".toml") + ".users"
		}
	}
	return "users"
}

// sameFile tells whether two names are of one file, or would be.
func sameFile(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

// serverText is the text of a new configuration, which is to be at path.
func (u *up) serverText(path string, addresses []string) (string, error) {
	var b strings.Builder
	b.WriteString("# ptgate, the far end, made by `ptgate up`. The options are secret.\n")
	website := false
	for _, address := range addresses {
		t, err := upAddress(address)
		if err != nil {
			return "", err
		}
		row, err := u.row(t)
		if err != nil {
			return "", err
		}
		public := destination.Format(t)
		options, _, err := row.Pair(public)
		if err != nil {
			return "", err
		}
		bind := netip.AddrPortFrom(netip.IPv4Unspecified(), t.Port)
		switch {
		case t.Addr.IsLoopback():
			bind = netip.AddrPortFrom(t.Addr, t.Port) // a trial on one machine
		case t.Addr.Is6():
			bind = netip.AddrPortFrom(netip.IPv6Unspecified(), t.Port)
		}
		fmt.Fprintf(&b, "\n[[serve]]\ntransport = %q\nbind      = %q\noptions   = { %s }\n", row.Name, bind, inlineTable(options))
		if !row.Front {
			fmt.Fprintf(&b, "public    = %q\n", public)
			continue
		}
		website = true
		authority, terms := "Let's Encrypt", "https://letsencrypt.org/repository/"
		tls := fmt.Sprintf("acme = %q", t.Name)
		if u.directory != "" {
			authority, terms = "another authority", "see "+u.directory
			tls += fmt.Sprintf(", directory = %q", u.directory)
		}
		if u.ca != "" {
			ca, err := filepath.Abs(u.ca)
			if err != nil {
				return "", err
			}
			tls += fmt.Sprintf(", ca = %q", ca)
		}
		if !u.ask.confirm("The certificate of " + t.Name + " comes from " + authority + ". Do you accept its terms (" + terms + ")") {
			return "", usagef("--address %s: a certificate of %s needs that you accept its terms (%s): say so with --yes", address, authority, terms)
		}
		fmt.Fprintf(&b, "tls       = { %s }\n", tls)
		if u.decoy != "" {
			fmt.Fprintf(&b, "decoy     = %q    # what everybody sees who does not know the path\n", u.decoy)
		} else {
			b.WriteString("# decoy   = \"/var/www/html\"    # pages that fit the name; without them every page is not found\n")
		}
	}
	if !website && u.decoy+u.directory+u.ca != "" {
		return "", usagef("--decoy and --acme-... are for a website, and no --address has a name: give one, as in --address www.example.com")
	}
	fmt.Fprintf(&b, serverExit+"users_file = %q   # whom `ptgate invite NAME` lets in; nobody else\n", usersFileFor(path))
	return b.String(), nil
}

// upAddress reads a --address; its port is 443 if it has none.
func upAddress(text string) (routes.Target, error) {
	text, _, err := config.Pasted(text, config.TextName)
	if err != nil {
		return routes.Target{}, usagef("--address: %v", err)
	}
	if strings.Contains(text, "://") {
		return routes.Target{}, usagef("--address %q is a URL: give the name or the IP address alone, as in www.example.com or 198.51.100.7:8443", text)
	}
	t, err := destination.Parse(text)
	if err != nil {
		plain, plainErr := destination.FromHostPort(strings.Trim(text, "[]"), 443)
		if plainErr == nil || !strings.Contains(text, ":") { // nobody has to give a port
			t, err = plain, plainErr
		}
	}
	switch {
	case err != nil:
		return t, usagef("--address %q: %v", text, err)
	case noServer(t.Addr):
		return t, usagef("--address %q: clients can't go there: give the server's public address", text)
	}
	return t, nil
}

// noServer tells whether no server can have an address: it stands for any, for several, or for all.
func noServer(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// row is the transport that serves an address.
func (u *up) row(t routes.Target) (*builtin.Transport, error) {
	name := t.Name != ""
	address := destination.Format(t)
	if u.transport == "" {
		for _, row := range builtin.Transports() {
			if row.Pair != nil && row.Placeholder == name {
				return &row, u.fits(&row, t, address)
			}
		}
	}
	row, _ := builtin.Lookup(u.transport)
	if row.Pair == nil {
		return nil, usagef("--transport %q: up knows %s", u.transport, pairable())
	}
	return row, u.fits(row, t, address)
}

func (u *up) fits(row *builtin.Transport, t routes.Target, address string) error {
	switch {
	case !row.Placeholder && t.Name != "":
		return usagef("--address %s: %s needs the server's IP address, not a name: looking it up would tell the network where you go", address, row.Name)
	case row.Front && (t.Name == "" || t.Port != 443):
		return usagef("--address %s: %s needs a name and port 443, for the certificate; behind a web server use  ptgate pair --transport %[2]s", address, row.Name)
	}
	return nil
}

// warnNear tells of addresses that lead here only from nearby. That is right for a trial,
// and for clients in the same network.
func warnNear(out io.Writer, cfg *config.Config) {
	for _, s := range cfg.Serve {
		a, err := netip.ParseAddrPort(s.Public)
		if err != nil {
			continue // a name
		}
		if near := nearby(a.Addr()); near != "" {
			fmt.Fprintf(out, "# warning: %s is %s: clients elsewhere can't reach it. They need this server's public address "+
				"(behind a router, the router's, which has to pass the port on)\n", a.Addr(), near)
		}
	}
}

// oneWay says how a server that has a name only gets a second way.
func oneWay(out io.Writer, cfg *config.Config) {
	if len(cfg.Serve) == 1 && cfg.Serve[0].Site != nil {
		fmt.Fprintf(out, "# this is one way. A second one, by obfs4, takes the IP address and another port, as in  --address %s --address 198.51.100.7:8443\n", cfg.Serve[0].Site.Name)
	}
}

// shared is what providers use between them and their customers (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// nearby says from where only an address can be reached; "": from everywhere.
func nearby(a netip.Addr) string {
	switch a = a.Unmap(); {
	case a.IsLoopback():
		return "this machine itself"
	case a.IsPrivate():
		return "an address of a private network"
	case a.IsLinkLocalUnicast():
		return "an address of one link"
	case shared.Contains(a):
		return "an address behind a provider's NAT"
	}
	return ""
}

// who is the user to invite; "": there are users already.
func (u *up) who(cfg *config.Config) (string, error) {
	if len(cfg.Exit.FileUsers) > 0 {
		return "", nil
	}
	if u.ask.yes {
		return "me", nil
	}
	answer, ok := u.ask.ask("Who is invited first (a name, such as alice)?")
	if !ok || answer == "" {
		return "", usagef("up needs --name NAME, the user that is invited; or --yes")
	}
	return answer, nil
}

// bindable tells whether the ports can be had.
func bindable(cfg *config.Config) error {
	for _, s := range cfg.Serve {
		ln, err := net.Listen("tcp", s.Bind.String())
		switch {
		case err == nil:
			ln.Close()
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("port %d needs a privilege: run this as root, or give a port from 1024 on: %w", s.Bind.Port(), err)
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("another program has port %d (`ss -ltnp` says which): stop it, or give another port with --address: %w", s.Bind.Port(), err)
		default:
			return fmt.Errorf("bind %s: %w", s.Bind, err)
		}
	}
	return nil
}

// firewall says what has to be let through. It changes nothing.
func firewall(out io.Writer, cfg *config.Config) {
	var ports []string
	for _, s := range cfg.Serve {
		if p := strconv.Itoa(int(s.Bind.Port())); !s.Bind.Addr().IsLoopback() && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	for _, port := range ports {
		fmt.Fprintf(out, "# TCP port %s must be open in the firewall, here and at the provider", port)
		for _, tool := range []struct{ program, command string }{
			{"ufw", "ufw allow %s/tcp"},
			{"firewall-cmd", "firewall-cmd --permanent --add-port=%s/tcp && firewall-cmd --reload"},
			{"nft", "nft add rule inet filter input tcp dport %s accept"},
		} {
			if _, err := exec.LookPath(tool.program); err == nil {
				fmt.Fprintf(out, ":  "+tool.command, port)
				break
			}
		}
		fmt.Fprintln(out)
	}
}

// booted is there where systemd is the system's manager (sd_booted(3)).
const booted = "/run/systemd/system"

// wantsService tells whether the system service is to be installed, for the configuration
// at path.
func (u *up) wantsService(path string) (bool, error) {
	if _, err := os.Stat(booted); err != nil || os.Geteuid() != 0 {
		return false, nil
	}
	if u.ask.confirm("Install and start the system service ptgate") {
		exe, err := program()
		if err != nil {
			return false, err
		}
		for _, hidden := range []string{"/root/", "/home/", "/run/user/", "/tmp/"} {
			if strings.HasPrefix(exe, hidden) || strings.HasPrefix(path, hidden) {
				return false, fmt.Errorf("a service can't see what is in %s: move %s to /usr/local/bin, and keep the configuration in /etc/ptgate; or run it with --front", hidden, exe)
			}
		}
		if unit, err := u.command("systemctl", "cat", unitName); err == nil && unitConfig(unit) != path {
			return false, fmt.Errorf("the service that is installed runs %s, and not %s: give that one with -c, or run this one with --front", unitConfig(unit), path)
		}
		return true, nil
	}
	if !isTerminal(u.cmd.InOrStdin()) {
		return false, usagef("up needs --yes, which installs and starts the system service, or --front")
	}
	return false, nil
}

// program is the path of this program.
func program() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(exe)
}

// command runs a program of the system, and returns what it says.
func (u *up) command(argv ...string) (string, error) {
	out, err := adapter.CombinedOutput(exec.CommandContext(u.cmd.Context(), argv[0], argv[1:]...))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// install installs and starts the system service for the configuration at path, with its
// file of users.
func (u *up) install(path, list string) error {
	exe, err := program()
	if err != nil {
		return err
	}
	if _, err := u.command("systemctl", "cat", unitName); err != nil { // no package has installed one
		unit, err := serviceUnit(exe, path)
		if err != nil {
			return err
		}
		if err := durable.WriteFile("/etc/systemd/system/"+unitName, []byte(unit), 0o644); err != nil {
			return err
		}
	}
	owner, err := user.Lookup("ptgate")
	if err != nil {
		if err := os.MkdirAll("/etc/sysusers.d", 0o755); err != nil {
			return err
		}
		if err := durable.WriteFile("/etc/sysusers.d/ptgate.conf", []byte(systemd.Users), 0o644); err != nil {
			return err
		}
		if _, err := u.command("systemd-sysusers", "ptgate.conf"); err != nil {
			return err
		}
		if owner, err = user.Lookup("ptgate"); err != nil {
			return err
		}
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(owner.Gid)
	if err != nil {
		return err
	}
	if err := newUsersFile(list, path); err != nil { // or the service warns that nobody can use it
		return err
	}
	for _, file := range []string{path, list} {
		if err := os.Chown(file, uid, gid); err != nil {
			return err
		}
	}
	return interruptible(u.cmd.Context(), func(context.Context) error {
		for _, argv := range [][]string{{"daemon-reload"}, {"enable", unitName}, {"restart", unitName}} {
			if _, err := u.command(append([]string{"systemctl"}, argv...)...); err != nil {
				return fmt.Errorf("%w; its log:  journalctl -u ptgate", err)
			}
		}
		fmt.Fprintln(u.cmd.ErrOrStderr(), "# started the service ptgate; its log:  journalctl -u ptgate")
		return nil
	})
}

// serviceConfig is the configuration of the service that a package installs.
const serviceConfig = "/etc/ptgate/ptgate.toml"

// unitConfig is the configuration of a service, whose unit `systemctl cat` shows.
func unitConfig(unit string) string {
	config := serviceConfig
	for line := range strings.Lines(unit) {
		if set, ok := strings.CutPrefix(strings.TrimSpace(line), "Environment=PTGATE_CONFIG="); ok {
			config = set // that of a file of the operator's own comes last
		}
	}
	return config
}

// serviceUnit is the unit for a program and a configuration in places of their own.
func serviceUnit(exe, path string) (string, error) {
	if strings.ContainsAny(exe+path, " %$\"'\\\n") {
		return "", fmt.Errorf("a unit can't name %s and %s: use paths without spaces, quotes, %% and $", exe, path)
	}
	return strings.NewReplacer("=ptgate run\n", "="+exe+" run\n", "=ptgate reload\n", "="+exe+" reload\n",
		"PTGATE_CONFIG="+serviceConfig+"\n", "PTGATE_CONFIG="+path+"\n").Replace(systemd.Unit), nil
}
