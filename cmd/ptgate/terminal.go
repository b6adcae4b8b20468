package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ptgate/adapter"
)

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

// printJSON writes v for scripts.
func printJSON(out io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = jsonWriter{out}.Write(append(b, '\n'))
	return err
}

// progress says on a terminal what a command waits for, once it has waited for a second,
// and takes it back when stop is called. Nothing else may write to out before that.
func progress(out io.Writer, what func() string) (stop func()) {
	if !takesCommands(out) {
		return func() {}
	}
	return showProgress(out, what)
}

func showProgress(out io.Writer, what func() string) (stop func()) {
	begin := time.Now()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for shown := false; ; shown = true {
			select {
			case <-tick.C:
				fmt.Fprintf(out, "\r\x1b[K%.70s: %v", plainText(what()), time.Since(begin).Truncate(time.Second))
			case <-end:
				if shown {
					io.WriteString(out, "\r\x1b[K")
				}
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// An output is the standard output. It notes that something could not be written, which most
// commands don't look at: what they print may be all that they are good for.
type output struct {
	*os.File
	mu  sync.Mutex
	err error // the first
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.File.Write(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = cmp.Or(o.err, err)
	return n, err
}

func (o *output) WriteString(s string) (int, error) { return o.Write([]byte(s)) }

// failed returns the first error.
func (o *output) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// A descriptor is a file.
type descriptor interface{ Fd() uintptr }

// isTerminal tells whether somebody may sit at f.
func isTerminal(f any) bool {
	file, ok := f.(descriptor)
	return ok && term.IsTerminal(int(file.Fd()))
}

// takesCommands tells whether f is a terminal that colours text and goes back in it. One in
// an editor often does not, and says so.
func takesCommands(f any) bool { return isTerminal(f) && os.Getenv("TERM") != "dumb" }

// A jsonWriter writes JSON that is safe to look at in a terminal. encoding/json leaves
// some control characters as they are, among them those of C1 by which a terminal takes
// commands. Here they become escapes, so that the JSON means the same.
type jsonWriter struct{ w io.Writer }

func (w jsonWriter) Write(text []byte) (int, error) {
	if n, err := w.w.Write(escapeJSON(text)); err != nil {
		return min(n, len(text)), err
	}
	return len(text), nil
}

// A plainWriter writes text for a terminal that comes from elsewhere, such as another
// process. What can't be printed becomes an escape.
type plainWriter struct{ w io.Writer }

func (w plainWriter) Write(text []byte) (int, error) {
	if n, err := io.WriteString(w.w, plainText(string(text))); err != nil {
		return min(n, len(text)), err
	}
	return len(text), nil
}

// plainText escapes each line of text.
func plainText(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = adapter.Escape(line, math.MaxInt)
	}
	return strings.Join(lines, "\n")
}

// escapeJSON returns JSON with escapes for all that can't be printed. What is no UTF-8 is
// replaced.
func escapeJSON(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == '\n' || r == '\t' || unicode.IsPrint(r): // outside strings JSON may have lines
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[n:]
	}
	return out
}
