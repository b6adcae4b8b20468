package redact_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ptgate/gateway/redact"
)

func TestQuoted(t *testing.T) {
	for message, want := range map[string]string{
		"":                                          "",
		"[listen]: socks5 can't be both":            "[listen]: socks5 can't be both",
		`route 1: unknown key "nonsense"`:           `route 1: unknown key "…"`,
		`via: there is no bridge "a": mean "b"?`:    `via: there is no bridge "…": mean "…"?`,
		`write [bridge."tokyo.two"]`:                `write [bridge."…"]`,
		`to: pattern "a\"hidden\" \\": has "x\\"`:   `to: pattern "…": has "…"`,
		`pattern "a": has '"' in its name`:          `pattern "…": has "…" in its name`,
		`key 'bridge."it's hidden"' is there`:       `"…"`,
		`expected '.' or '=', but got 'h' instead`:  `expected "…" or "…", but got "…" instead`,
		`invalid float: '1.hidden' (the box's own)`: `invalid float: "…" (the box's own)`,
		`key 'it' hidden' is there`:                 `"…"`,
		`write "*.a"hidden" for it`:                 `"…"`,
		`write "*.a"hidden"b" for it`:               `"…"`,
		`it has a single " in hidden`:               `"…"`,
	} {
		if got := redact.Quoted(message); got != want {
			t.Errorf("%s: got %s, want %s", message, got, want)
		}
	}
}

// No message that the configuration's tests know loses all of its text, and none keeps an
// address or a name, but for those of this machine's own listeners.
func TestQuotedMessages(t *testing.T) {
	files, err := filepath.Glob("../config/testdata/bad/*.want")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	secret := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+|::|example|\*`)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			parts := strings.SplitN(lines.Text(), ": ", 2)
			got := strings.ReplaceAll(redact.Quoted(parts[1]), "bind to 127.0.0.1", "")
			if got == `"…"` || secret.MatchString(got) && !strings.Contains(got, "takes the port") {
				t.Errorf("%s becomes %s", lines.Text(), got)
			}
		}
	}
}

func ExampleQuoted() {
	fmt.Println(redact.Quoted(`route 1: to: pattern "a b.example": has a space in it: write each pattern on its own`))
	// Output: route 1: to: pattern "…": has a space in it: write each pattern on its own
}
