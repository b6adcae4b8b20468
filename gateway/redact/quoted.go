package redact

import (
	"regexp"
	"strings"
)

var (
	// quoted finds what stands in quotes: double ones as %q writes them, or single ones as
	// the TOML library writes them.
	quoted = regexp.MustCompile(`(^|[\s(\[{=.])(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')`)
	// stray is a quote that is no apostrophe inside a word.
	stray = regexp.MustCompile(`"|\B'|'\B`)
)

// Quoted returns a message about a configuration file without what it quotes of the file:
// "…" stands in its place. If it is not clear where a quotation ends, nothing is left.
func Quoted(message string) string {
	const gone = `"…"`
	message = quoted.ReplaceAllString(message, "${1}"+gone)
	for i, rest := range strings.Split(message, gone) {
		if i > 0 && rest != "" && !strings.Contains(" :,;.?)]}", rest[:1]) || stray.MatchString(rest) {
			return gone
		}
	}
	return message
}
