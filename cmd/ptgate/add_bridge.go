package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"ptgate/adapter"
	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/invitation"
	"ptgate/routes"
)

func newAddBridgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add-bridge LINE",
		Short: "Add a pasted bridge line to the configuration",
		Long: `Add a bridge line, as ` + "`ptgate bridges`" + ` prints it or as Tor users pass it around, to
the configuration as a [bridge.NAME] at its end. Everything that is in the file
stays as it is, comments too; the new file is checked whole before it takes the
old one's place.

The line may be quoted or not, or be the  line = "..."  of a configuration. With -
it is read from the standard input, so that its secrets show neither in the list of
processes nor in the shell's history.

A route leads to the bridge once its name stands in the route's via. --route PATTERN
writes it there: at the end of the via of the route that has this pattern, such as "*".`,
		Example: `  ptgate add-bridge -c client.toml --name tokyo -
  ptgate add-bridge --name tokyo 'obfs4 192.0.2.10:443 cert=... iat-mode=0'`,
		SuggestFor: []string{"add", "bridge"},
		Args:       someArgs("LINE", "'obfs4 192.0.2.10:443 cert=... iat-mode=0', or - to paste it"),
	}
	file := configFlag(cmd)
	name := cmd.Flags().String("name", "", "`NAME` of the bridge (default: the transport's, with a number if that is taken)")
	completeFlag(cmd, "name", cobra.NoFileCompletions)
	far := cmd.Flags().String("far", "exit", "what stands behind it: exit, socks5 or forward")
	completeFlag(cmd, "far", cobra.FixedCompletions([]string{
		"exit\ta ptgate server", "socks5\tany SOCKS5 server", "forward\tone fixed service",
	}, cobra.ShellCompDirectiveNoFileComp))
	route := cmd.Flags().String("route", "", "`PATTERN` of the route that is to lead to the bridge, too, as it stands in the file")
	completeFlag(cmd, "route", routePatterns(file))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("name") && !bridgeName.MatchString(*name) {
			return usagef("--name %q: letters, digits, \"-\", \"_\" and inner dots only", *name)
		}
		if *name == "direct" || *name == "block" {
			return usagef("--name %q: it has a meaning of its own in via", *name)
		}
		if !slices.Contains([]config.Far{config.FarExit, config.FarSOCKS5, config.FarForward}, config.Far(*far)) {
			return usagef("--far %q: exit, socks5 or forward", *far)
		}
		if cmd.Flags().Changed("route") {
			if _, err := routes.ParsePattern(*route, destination.Canonical); err != nil {
				return usagef("--route: %w", err)
			}
		}
		line, leftOut, err := pastedLine(cmd, strings.Join(args, " "))
		if err != nil {
			return err
		}
		path, err := config.Find(*file)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: there is no such file: name the one to add to with -c FILE", path)
		}
		for _, c := range leftOut {
			fmt.Fprintf(cmd.ErrOrStderr(), "left out of the line: %v\n", c)
		}
		added, problems, err := addBridge(cmd.Context(), path, *name, *route, line, config.Far(*far))
		for _, p := range problems {
			fmt.Fprintln(cmd.ErrOrStderr(), p)
		}
		if err != nil {
			return err
		}
		if *route != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "added [bridge.%s] to %s, and to the route of %s; now `ptgate reload -c %s`\n", tomlKey(added), path, *route, path)
			return nil
		}
		fmt.Fprintf(cmd.OutOrStdout(), "added [bridge.%s] to %s; name it in a route's via, then `ptgate reload -c %s`\n", tomlKey(added), path, path)
		return nil
	}
	return cmd
}

// pastedLine reads a bridge line as it was pasted; "-": the standard input has it. leftOut are
// the characters that came with it and belong to no line.
func pastedLine(cmd *cobra.Command, text string) (line adapter.BridgeLine, leftOut []config.Char, err error) {
	if text == "-" {
		terminal := isTerminal(cmd.InOrStdin())
		if terminal {
			fmt.Fprintln(cmd.ErrOrStderr(), "paste the line, then Enter")
		}
		if text, err = readLine(cmd.InOrStdin(), terminal); err != nil {
			return line, nil, fmt.Errorf("standard input: %w", err)
		}
	}
	if invitation.In(text) {
		return line, nil, errors.New("this is an invitation, not a bridge line: use `ptgate join`")
	}
	text, around, _ := config.Pasted(text, config.TextLine) // what is around the quotes
	text, removed, err := config.Pasted(bare(text), config.TextLine)
	if err != nil {
		return line, nil, fmt.Errorf("the line has %w", err)
	}
	if text == "" {
		return line, nil, errors.New("there is no line: give it whole, as in  obfs4 192.0.2.10:443 cert=... iat-mode=0")
	}
	if says := config.Foreign(text); says != "" {
		return line, nil, errors.New(says)
	}
	line, err = adapter.ParseBridgeLine(text)
	return line, append(around, removed...), err
}

var bridgeName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.+[A-Za-z0-9_-]+)*$`)

// tomlKey is a bridge's name as a part of a TOML key.
func tomlKey(name string) string {
	if strings.Contains(name, ".") {
		return strconv.Quote(name)
	}
	return name
}

// maxLine bounds the standard input, in bytes.
const maxLine = 64 << 10

// readLine reads a bridge line: of a terminal its first line, of anything else the
// only one.
func readLine(r io.Reader, terminal bool) (string, error) {
	in := bufio.NewScanner(io.LimitReader(r, maxLine))
	in.Buffer(nil, maxLine+1)
	line, size := "", 0
	for in.Scan() {
		size += len(in.Bytes()) + 1
		switch text := strings.TrimSpace(in.Text()); {
		case !terminal && fence.MatchString(text): // of the page that it was copied from
		case terminal:
			return text, nil
		case text != "" && line != "" && config.Foreign(line) != "":
			return line, nil
		case text != "" && line != "":
			return "", errors.New("it has more than one line: add one bridge at a time; a line that was broken in two must be joined first")
		case text != "":
			line = text
		}
	}
	if in.Err() == nil && size >= maxLine {
		return "", fmt.Errorf("it has more than %d bytes", maxLine)
	}
	return line, in.Err()
}

var fence = regexp.MustCompile("^(```|~~~)\\w*$")

// bare takes off what stands around a bridge line where it is quoted, or copied out
// of a configuration.
func bare(text string) string {
	text = strings.TrimSpace(text)
	whole := text
	if rest, ok := strings.CutPrefix(text, "line"); ok {
		if rest, ok = strings.CutPrefix(strings.TrimSpace(rest), "="); ok {
			text = strings.TrimSpace(rest)
		}
	}
	if rest, ok := cutPair(text); ok {
		return rest
	}
	if n := len(text); n >= 2 && text[0] == text[n-1] && (text[0] == '"' || text[0] == '\'' || text[0] == '`') {
		if plain, err := strconv.Unquote(text); err == nil && text[0] == '"' {
			return plain // TOML's escapes in what we write are Go's
		}
		return text[1 : n-1]
	}
	if strings.IndexAny(text, "\"'`") == 0 { // it is not closed: columns are those of what was pasted
		return whole
	}
	return text
}

// cutPair takes off a pair of typographic quotes, which some programs make of plain
// ones.
func cutPair(text string) (string, bool) {
	const quotes = "“”„‟‘’‚‛«»‹›"
	first, n := utf8.DecodeRuneInString(text)
	last, m := utf8.DecodeLastRuneInString(text)
	if len(text) <= n || !strings.ContainsRune(quotes, first) || !strings.ContainsRune(quotes, last) {
		return text, false
	}
	return strings.TrimSpace(text[n : len(text)-m]), true
}

// addBridge appends a bridge to the file, if the outcome has no errors. It gives
// the bridge's name and what the check of the new file has found, but for warnings
// that are none of the bridge's.
func addBridge(ctx context.Context, path, name, route string, line adapter.BridgeLine, far config.Far) (_ string, problems []config.Problem, _ error) {
	unlock, err := lockFile(path)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	// A file with errors may be one that lacks just this bridge: the outcome counts.
	old, known := config.Load(path)
	if old == nil {
		old = &config.Config{}
	}
	taken := map[string]bool{}
	for _, b := range old.Bridges {
		taken[b.Name] = true
		if same(b, line) {
			return "", nil, fmt.Errorf("%s has this bridge already: it is %q, at line %d", path, b.Name, b.Line)
		}
	}
	switch {
	case name == "":
		name = line.Transport
		for i := 2; taken[name]; i++ {
			name = line.Transport + "-" + strconv.Itoa(i)
		}
	case taken[name]:
		return "", nil, fmt.Errorf("%s has a bridge %q already: give another --name", path, name)
	}
	err = replaceFile(ctx, path, func(doc []byte, mode fs.FileMode) ([]byte, error) {
		if route != "" {
			var err error
			if doc, err = addToRoute(path, doc, mode, route, name); err != nil {
				return nil, err
			}
		}
		if len(doc) > 0 && doc[len(doc)-1] != '\n' {
			doc = append(doc, '\n')
		}
		// A line has no control characters: Go's quoting is TOML's.
		doc = fmt.Appendf(doc, "\n[bridge.%s]\nline = %s\n", tomlKey(name), strconv.QuoteToGraphic(line.String()))
		if far != config.FarExit {
			doc = fmt.Appendf(doc, "far = %q\n", far)
		}
		cfg, found := config.Check(path, doc, mode)
		for _, p := range found {
			if !p.Warning || !slices.Contains(known, p) {
				problems = append(problems, p)
			}
		}
		if cfg == nil {
			return nil, fmt.Errorf("%s stays as it was: with the bridge it would have errors", path)
		}
		return doc, nil
	})
	return name, problems, err
}

// viaLine is a via that stands on one line.
var viaLine = regexp.MustCompile(`^(\s*via\s*=\s*)(?:("[^"]*")|\[([^\]]*)\])(\s*(?:#.*)?)$`)

// addToRoute writes a bridge's name at the end of the via of the route that has the pattern.
// All else stays as it is.
func addToRoute(path string, doc []byte, mode fs.FileMode, pattern, name string) ([]byte, error) {
	cfg, _ := config.Check(path, doc, mode)
	if cfg == nil {
		return nil, fmt.Errorf("%s has errors, so that its routes are not known: `ptgate check -c %[1]s` lists them", path)
	}
	want, err := routes.ParsePattern(pattern, destination.Canonical)
	if err != nil {
		return nil, usagef("--route: %w", err)
	}
	i := 0
	has := func(rule int) bool {
		for n := range cfg.Table.Patterns(rule) {
			if cfg.Table.Pattern(routes.Match{Rule: rule, Pattern: n}) == want {
				return true
			}
		}
		return false
	}
	for i < len(cfg.Routes) && !has(i) {
		i++
	}
	if i == len(cfg.Routes) {
		return nil, fmt.Errorf("no route of %s has the pattern %q: `ptgate explain` tells which one takes a destination, and by which pattern", path, pattern)
	}
	r := cfg.Routes[i]
	if r.Action != config.ActionBridges {
		return nil, fmt.Errorf("the route at line %d of %s leads to no bridge: it says direct or block", r.Line, path)
	}
	lines := strings.SplitAfter(string(doc), "\n")
	for n := r.Line; n < len(lines); n++ { // the line of the [[route]] is before
		text := strings.TrimRight(lines[n], "\r\n")
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			break
		}
		m := viaLine.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		list := strings.TrimRight(strings.TrimSpace(m[2]+m[3]), ", \t")
		lines[n] = fmt.Sprintf("%s[%s, %q]%s%s", m[1], list, name, m[4], lines[n][len(text):])
		return []byte(strings.Join(lines, "")), nil
	}
	return nil, fmt.Errorf("the via of the route at line %d of %s is not on one line: write %q into it by hand", r.Line, path, name)
}

// same tells whether b is what line describes.
func same(b *config.Bridge, line adapter.BridgeLine) bool {
	return b.Transport == line.Transport && b.Address == line.Addr &&
		slices.Equal(b.Args, line.Args)
}

// lockFile keeps other ptgates from editing a file until unlock is called, so that none
// takes the place of what another one has just written. The lock is on the directory: the
// file itself is replaced.
func lockFile(path string) (unlock func(), err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := lock(dir); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	return func() { dir.Close() }, nil
}

// replaceFile puts what edit makes of a file in its place, at once and whole. Mode
// and owner stay; a symbolic link stays one.
func replaceFile(ctx context.Context, path string, edit func([]byte, fs.FileMode) ([]byte, error)) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if doc, err = edit(doc, info.Mode()); err != nil {
		return err
	}
	// A signal waits for this, so that nothing is left beside the file.
	return interruptible(ctx, func(context.Context) error {
		return durable.Replace(path, doc, info.Mode().Perm(), func(f *os.File) error { return keepOwner(f, info) })
	})
}
