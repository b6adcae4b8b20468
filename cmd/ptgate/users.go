package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/adapter/durable"
	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/credentials"
	"ptgate/gateway/exit"
	"ptgate/gateway/invitation"
	"ptgate/gateway/users"
)

func newInviteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "invite NAME",
		Short: "On a server: make a user of its own, and one link with all that a client needs",
		Long: `On a server: make a user, and print one link (ptgate://...) with all that a client
needs: the user's name and secret, who this box is, and each bridge line. On the other
side  ptgate join LINK  does the rest.

The user is written to [exit] users_file, with the secret as a hash only: the link can't
be printed again. A running ptgate knows the user at once; without one the file is all
that changes. A name that is there already gets a new secret, with --again only: what it
has open ends at once. Its limits stay, but for those that are given.`,
		Example: `  ptgate invite alice
  ptgate invite bob --expires 30d --rate 20Mbit --quota 50GB/month
  ptgate invite carol --allow '*.example.org' --allow '*:443' --qr`,
		SuggestFor: []string{"adduser", "add-user", "useradd", "link"},
		Args:       oneArg("NAME", "alice"),
	}
	file := configFlag(cmd)
	var limits [4]string
	for i, f := range []struct{ name, value, help string }{
		{"expires", "TIME", "how long the user may come, as in 30d or 12h, or until when: a day as in 2026-12-31"},
		{"rate", "RATE", "bits in a second, each way, as in 20Mbit"},
		{"streams", "NUMBER", "connections at the same time (default: limits.client_streams)"},
		{"quota", "SIZE", "bytes in a month, both ways together, as in 50GB/month"},
	} {
		cmd.Flags().StringVar(&limits[i], f.name, "", fmt.Sprintf("`%s`: %s", f.value, f.help))
		completeFlag(cmd, f.name, cobra.NoFileCompletions)
	}
	allow := cmd.Flags().StringArray("allow", nil, "`PATTERN` of destinations, beside [exit] allow; may be given several times")
	completeFlag(cmd, "allow", cobra.NoFileCompletions)
	qr := cmd.Flags().Bool("qr", false, "draw the link as a QR code, too")
	out := cmd.Flags().String("out", "", "write the link to a new `FILE` (mode 0600), and do not print it")
	again := cmd.Flags().Bool("again", false, "give a user who is there already a new secret, and keep the limits that are not given")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u := users.User{Name: args[0]}
		if err := users.CheckName(u.Name); err != nil {
			return usageError{err}
		}
		for i, key := range []string{"expires", "rate", "streams", "quota"} {
			if !cmd.Flags().Changed(key) {
				continue // and what is empty is wrong: in a script, a limit would be lost
			}
			value := limits[i]
			if key == "expires" {
				value = untilWhen(value, time.Now())
			}
			if err := u.Set(key, value); err != nil {
				if key == "expires" {
					return usagef("--expires %q: give a length of time as in 30d or 12h, or a day as in 2026-12-31", value)
				}
				return usagef("--%s: %w", key, err)
			}
		}
		for _, p := range *allow {
			if err := u.Set("allow", p); err != nil {
				return usagef("--%w", err)
			}
		}
		if u.Expired(time.Now()) {
			return usagef("--expires %s: that is over already", limits[0])
		}
		if err := newFile(cmd, "out", *out); err != nil {
			return err
		}
		cfg, err := loadErrors(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		link, err := invite(cmd, *file, cfg, u, *again)
		if err != nil {
			return err
		}
		announceUser(cmd, *file, cfg)
		return giveLink(cmd, cfg.Path, u.Name, link, *out, *qr)
	}
	return cmd
}

// giveLink prints the link of a user of the configuration file, or writes it to the file out,
// if that is not empty.
func giveLink(cmd *cobra.Command, file, user, link, out string, qr bool) error {
	var err error
	if out != "" {
		err = writeSecret(out, link+"\n")
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), link)
	}
	if err != nil {
		return fmt.Errorf("the user is made, and the link could not be written; try `ptgate invite --again %s`: %w", user, err)
	}
	if out != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "# %s has the link; it is a secret. On the other side:  ptgate join %s\n", out, filepath.Base(out))
	}
	if qr {
		drawQR(cmd, link, fmt.Sprintf("ptgate invite -c %s --again --qr %s", file, user))
	}
	return nil
}

// announceUser tells a running ptgate of a new user. The link is good for the next one that
// reads the file, so what goes wrong here is only said.
func announceUser(cmd *cobra.Command, file string, cfg *config.Config) {
	switch told, err := tellUsers(cmd.Context(), file, cfg); {
	case err != nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "# warning: the user is in %s, but the running ptgate does not let it in before `ptgate reload -c %s`: %v\n", cfg.Exit.UsersFile, cfg.Path, err)
	case !told:
		fmt.Fprintf(cmd.ErrOrStderr(), "# no ptgate runs %s now: the user is in %s for the next one that does\n", cfg.Path, cfg.Exit.UsersFile)
	}
}

// oneArg wants one word, which is called what.
func oneArg(what, example string) cobra.PositionalArgs {
	some := someArgs(what, example)
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("%s: %q is one word too many; `ptgate %[1]s --help` tells more", cmd.Name(), args[1])
		}
		return some(cmd, args)
	}
}

// untilWhen is a length of time from now on, such as 30d, as a moment. Anything else stays.
func untilWhen(text string, now time.Time) string {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, daysErr := strconv.Atoi(days); daysErr == nil && n > 0 && n < 100_000 {
			d, err = time.Duration(n)*24*time.Hour, nil
		}
	}
	if err != nil {
		return text
	}
	return now.Add(d).UTC().Format(time.RFC3339)
}

// invite makes the user, with a fresh secret, and returns the link.
func invite(cmd *cobra.Command, file string, cfg *config.Config, u users.User, again bool) (string, error) {
	if err := hasUsersFile(cfg); err != nil {
		return "", err
	}
	if _, ok := cfg.Exit.Users[u.Name]; ok {
		return "", fmt.Errorf("the user %q is one of [exit] users of %s: take another name", u.Name, cfg.Path)
	}
	v := invitation.Invitation{User: u.Name, Secret: credentials.NewSecret()}
	all, stateDir, err := announced(cmd, file, cfg)
	if err != nil {
		return "", err
	}
	for i, a := range all {
		if cfg.Serve[i].Forward != "" {
			continue // it leads to a service, not to the exit
		}
		line, remark, err := gateway.BridgeLine(cfg.Serve[i], a)
		if err != nil {
			return "", err
		}
		if remark != "" {
			return "", errors.New(remark)
		}
		l, err := adapter.ParseBridgeLine(line)
		if err != nil {
			return "", err
		}
		v.Lines = append(v.Lines, l)
	}
	if len(v.Lines) == 0 {
		return "", fmt.Errorf("%s has no [[serve]] that leads to the exit: invitations come from the far end's configuration", cfg.Path)
	}
	if v.Box, err = gateway.BoxOf(stateDir); err != nil {
		return "", err
	}
	u.Secret = credentials.Digest(v.Secret)
	err = editUsers(cmd.Context(), cfg, func(text string) (string, error) {
		all, _, _ := users.Parse(text)
		i := slices.IndexFunc(all, func(o users.User) bool { return o.Name == u.Name })
		if i >= 0 && !again {
			return "", fmt.Errorf("there is a user %q already: `ptgate invite --again %[1]s` gives it a new secret, and ends what it has open", u.Name)
		}
		if i >= 0 {
			keepLimits(&u, &all[i], cmd.Flags().Changed)
		}
		if u.Expired(time.Now()) {
			return "", fmt.Errorf("the time of the user %q is over: say with --expires until when the new link is good", u.Name)
		}
		return users.Put(text, &u), nil
	})
	if err != nil {
		return "", err
	}
	return v.String(), nil
}

// keepLimits gives u the limits of old that are not given anew.
func keepLimits(u, old *users.User, given func(flag string) bool) {
	if !given("expires") {
		u.Expires = old.Expires
	}
	if !given("rate") {
		u.Rate = old.Rate
	}
	if !given("streams") {
		u.Streams = old.Streams
	}
	if !given("quota") {
		u.Quota = old.Quota
	}
	if !given("allow") {
		u.Allow = old.Allow
	}
}

// hasUsersFile returns an error that says how to get one.
func hasUsersFile(cfg *config.Config) error {
	if cfg.Exit.UsersFile == "" {
		return fmt.Errorf("%s has no file for users: write  users_file = \"users\"  below its [exit] (one such heading is all that a file may have), then `ptgate reload` where it runs; "+
			"from then on every client needs a user", cfg.Path)
	}
	return nil
}

// editUsers changes the users_file of cfg as edit says. It makes the file if there is none.
func editUsers(ctx context.Context, cfg *config.Config, edit func(string) (string, error)) error {
	name := cfg.Exit.UsersFile
	if err := newUsersFile(name, cfg.Path); err != nil {
		return err
	}
	unlock, err := lockFile(name) // two commands at once must not lose a user
	if err != nil {
		return err
	}
	defer unlock()
	return replaceFile(ctx, name, func(doc []byte, _ fs.FileMode) ([]byte, error) {
		text, err := edit(string(doc))
		return []byte(text), err
	})
}

// newUsersFile makes the file if there is none. It belongs to whom the configuration
// belongs: the service that reads one has to read the other.
func newUsersFile(name, configuration string) error {
	err := durable.WriteNew(name, []byte(users.Header), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(configuration)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(keepOwner(f, info), f.Close())
}

// tellUsers makes the running ptgate read its users_file again, and each other one that has the
// same file. told is false if none runs.
func tellUsers(ctx context.Context, file string, cfg *config.Config) (told bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := running(ctx, file, "")
	if err == nil {
		told, err = control.ReadUsers(ctx, r.socket, "")
	}
	if errors.Is(err, control.ErrNotRunning) {
		err = nil
	}
	list, absErr := filepath.Abs(cfg.Exit.UsersFile)
	if absErr != nil {
		return told, errors.Join(err, absErr)
	}
	for _, socket := range control.Others(r.file.StateDirs, r.socket) {
		read, otherErr := control.ReadUsers(ctx, socket, list)
		if errors.Is(otherErr, control.ErrNotRunning) {
			continue // it was killed, or has ended just now
		}
		told, err = told || read, errors.Join(err, otherErr)
	}
	return told && err == nil, err
}

func newRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "On a server: end a user, and what the user has open",
		Long: `On a server: take a user out of [exit] users_file. If ptgate runs, all that the user
has open ends at once, in the middle of a download, too. The links of others stay good.`,
		Example:    `  ptgate revoke alice`,
		SuggestFor: []string{"uninvite", "remove", "delete", "ban"},
		Args:       oneArg("NAME", "alice"),
	}
	file := configFlag(cmd)
	cmd.ValidArgsFunction = userNames(file)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := loadErrors(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if err := hasUsersFile(cfg); err != nil {
			return err
		}
		name := args[0]
		if _, ok := cfg.Exit.Users[name]; ok {
			return fmt.Errorf("the user %q is one of [exit] users: take it out of %s, then `ptgate reload`", name, cfg.Path)
		}
		err = editUsers(cmd.Context(), cfg, func(text string) (string, error) {
			out, found := users.Remove(text, name)
			if !found {
				return "", fmt.Errorf("%s has no user %q", cfg.Exit.UsersFile, name)
			}
			return out, nil
		})
		if err != nil {
			return err
		}
		told, err := tellUsers(cmd.Context(), *file, cfg)
		switch {
		case err != nil:
			return fmt.Errorf("the user is out of %s, and a running ptgate may still serve it: %w", cfg.Exit.UsersFile, err)
		case told:
			fmt.Fprintf(cmd.OutOrStdout(), "revoked %s; what it had open has ended\n", name)
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "revoked %s; no ptgate runs %s now\n", name, cfg.Path)
		}
		return nil
	}
	return cmd
}

// A userRow is what `ptgate users` tells of a user.
type userRow struct {
	Name   string   `json:"name"`
	Limits []string `json:"limits"`
	State  string   `json:"state"` // active, idle, expired or over quota
	exit.Usage
}

func newUsersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "users",
		Short: "On a server: the users, when they were last seen, and how much they have used",
		Long: `On a server: the users, when they were last seen, and how many bytes they have used.
Nothing tells where they went, or from where they came.`,
		Example: `  ptgate users
  ptgate users -c server.toml --json`,
		Args: noArgs,
	}
	file := configFlag(cmd)
	raw := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadErrors(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		usage, live, err := usageOf(cmd.Context(), *file, cfg)
		if err != nil {
			return err
		}
		rows := userRows(cfg, usage, live, time.Now())
		if *raw {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		printUsers(plainWriter{cmd.OutOrStdout()}, rows)
		switch {
		case len(rows) > 0:
		case cfg.Exit.UsersFile == "":
			fmt.Fprintf(cmd.ErrOrStderr(), "# %s has no users: everybody with a bridge line may use its exit, if it has one\n", cfg.Path)
		default:
			fmt.Fprintf(cmd.ErrOrStderr(), "# there is nobody yet; `ptgate invite -c %s NAME` makes the first one\n", cfg.Path)
		}
		return nil
	}
	return cmd
}

// usageOf asks the running ptgate; without one, it reads what the last one has noted.
func usageOf(ctx context.Context, file string, cfg *config.Config) (all map[string]exit.Usage, live bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := running(ctx, file, "")
	var b []byte
	if err == nil {
		b, err = control.Users(ctx, r.socket)
	}
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return gateway.NotedUsage(cfg), false, nil
	case err != nil:
		return nil, false, err
	}
	return all, true, json.Unmarshal(b, &all)
}

func userRows(cfg *config.Config, usage map[string]exit.Usage, live bool, now time.Time) []userRow {
	rows := []userRow{}
	add := func(name string, u *users.User) {
		r := userRow{Name: name, Limits: append([]string{}, u.Limits()...), State: "idle", Usage: usage[name]}
		if !live {
			r.Streams = 0
		}
		if r.Month != now.UTC().Format("2006-01") {
			r.Used = 0
		}
		switch {
		case u.Expired(now):
			r.State = "expired"
		case u.Quota > 0 && r.Used >= u.Quota:
			r.State = "over quota"
		case r.Streams > 0:
			r.State = "active"
		}
		rows = append(rows, r)
	}
	for _, u := range cfg.Exit.FileUsers {
		add(u.Name, &u)
	}
	for name := range cfg.Exit.Users {
		add(name, &users.User{})
	}
	slices.SortFunc(rows, func(a, b userRow) int { return strings.Compare(a.Name, b.Name) })
	return rows
}

func printUsers(out io.Writer, rows []userRow) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "user\tstate\tlast seen\tthis month\tup\tdown\tlimits")
	for _, r := range rows {
		last := "never"
		switch {
		case r.Streams > 0:
			last = "now, " + plural(r.Streams, "stream")
		case !r.Last.IsZero():
			last = r.Last.Local().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.State, last, size(r.Used), size(r.Up), size(r.Down), strings.Join(r.Limits, " "))
	}
}
