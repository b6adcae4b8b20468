package config

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"ptgate/adapter"
)

// syntaxHint says what is probably meant where a document is no TOML; "": nothing is known
// that says more than the TOML library. line is from 1. What it takes from the document it
// quotes, so that it can be kept out of a log.
func syntaxHint(doc []byte, line int, message string) string {
	if hint := encodingHint(doc); hint != "" {
		return hint
	}
	lines := strings.Split(string(doc), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	text := strings.TrimSpace(lines[line-1])
	if hint := oddCharacter(lines[line-1]); hint != "" {
		return hint
	}
	if hint := Foreign(text); hint != "" {
		return hint
	}
	if _, err := adapter.ParseBridgeLine(strings.TrimPrefix(text, "Bridge ")); err == nil {
		return "this is a bridge line alone: `ptgate add-bridge` adds it to a file, or write [bridge.NAME], and below it line = \"…\""
	}
	if m := backtick.FindString(lines[line-1]); m != "" {
		return fmt.Sprintf("a backtick at character %d is no quote: write plain ones, as in \"text\"", utf8.RuneCountInString(m))
	}
	if r := lookalikeOutside(lines[line-1]); r.At > 0 {
		return fmt.Sprintf("%U at character %d is a letter that is none of a to z, though it may look like one: write it anew", r.Rune, r.At)
	}
	for _, s := range slips {
		if m := s.text.FindStringSubmatch(text); m != nil {
			if hint := s.hint(m); hint != "" {
				return hint
			}
		}
	}
	switch {
	case strings.Contains(message, "already been defined"):
		return defined(message)
	case strings.Contains(message, "escape"), strings.Contains(message, "hexadecimal"):
		return escapeHint
	case strings.Contains(message, "array terminator"):
		return "a comma is missing between two entries of the list, or \"]\" at its end"
	}
	if m := gotOther.FindStringSubmatch(message); m != nil {
		r, _ := utf8.DecodeRuneInString(m[1])
		return fmt.Sprintf("%U stands where a key or its sign is meant: take it out, or put the text in quotes", r)
	}
	return ""
}

// gotOther is a message about a character that is none of ASCII.
var gotOther = regexp.MustCompile(`but got '([^\x00-\x7f])'`)

// openText is the line in which a text begins that has three quotes in front and none at its
// end. 0: there is none.
func openText(doc []byte, message string) int {
	if !strings.Contains(message, "EOF") {
		return 0
	}
	quotes := "'''"
	if strings.Contains(message, `"""`) {
		quotes = `"""`
	}
	at := bytes.LastIndex(doc, []byte(quotes))
	if at < 0 || !strings.Contains(message, quotes) {
		return 0
	}
	return bytes.Count(doc[:at], []byte("\n")) + 1
}

// listStart is a key whose value is a list.
var listStart = regexp.MustCompile(`^` + key + `\s*=\s*\[`)

// openList is the line of a list that goes on into another line, to which it can't go on: one that
// is the heading of a table, or has a key. 0: the line has no such list above it.
func openList(doc []byte, line int) int {
	lines := strings.Split(string(doc), "\n")
	if line < 2 || line > len(lines) {
		return 0
	}
	if text := strings.TrimSpace(lines[line-1]); text != "" && !strings.HasPrefix(text, "[") && !startsKey.MatchString(text) {
		return 0
	}
	depth := 0
	for i := line - 2; i >= 0; i-- {
		text := strings.TrimSpace(outsideQuotes(lines[i]))
		depth += strings.Count(text, "]") - strings.Count(text, "[")
		if listStart.MatchString(text) {
			if depth < 0 {
				return i + 1
			}
			return 0
		}
		if strings.HasPrefix(text, "[") || startsKey.MatchString(text) {
			return 0
		}
	}
	return 0
}

var startsKey = regexp.MustCompile(`^` + key + `\s*=`)

var quotedText = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|#.*`)

// blankQuotes is a line with signs in the place of its texts and its comment.
func blankQuotes(line string) string {
	return quotedText.ReplaceAllStringFunc(line, func(s string) string { return strings.Repeat("-", utf8.RuneCountInString(s)) })
}

// lookalikeOutside is lookalike for what stands outside of the texts of a line. A value is meant to
// be a text, and only lacks a quote, if it is all of another script.
func lookalikeOutside(line string) Char {
	line = blankQuotes(line)
	if at := strings.IndexAny(line, `"'`); at >= 0 { // a text without an end
		line = line[:at]
	}
	keys, value, _ := strings.Cut(line, "=")
	if strings.HasPrefix(strings.TrimSpace(value), "{") { // it has keys, too
		keys, value = line, ""
	}
	if r := lookalike(keys); r.At > 0 {
		return r
	}
	if r := mixedUp(value); r.At > 0 {
		return Char{r.Rune, utf8.RuneCountInString(keys) + 1 + r.At}
	}
	return Char{}
}

// outsideQuotes is a line without its texts and its comment.
func outsideQuotes(line string) string { return quotedText.ReplaceAllString(line, "") }

const escapeHint = "in a text in double quotes a backslash begins an escape: write it twice, or put the text in single quotes, as in 'C:\\Users\\me'"

// encodingHint says what is wrong with the bytes of a document as a whole.
func encodingHint(doc []byte) string {
	switch {
	case isUTF16(doc):
		return utf16Hint
	case bytes.IndexByte(doc, 0) >= 0:
		return "the file has a NUL byte in it: it is damaged, or no configuration; name the right one"
	case !utf8.Valid(doc):
		return "the file has bytes that are no UTF-8: save it as UTF-8"
	case bytes.IndexByte(doc, '\r') >= 0 && bytes.IndexByte(doc, '\n') < 0:
		return "the lines end in a carriage return alone: save the file with line ends of Unix or Windows"
	}
	return ""
}

const utf16Hint = "the file is in UTF-16: save it as UTF-8 (in the Notepad of Windows: Save as, Encoding)"

func isUTF16(doc []byte) bool {
	return bytes.HasPrefix(doc, []byte("\xff\xfe")) || bytes.HasPrefix(doc, []byte("\xfe\xff")) || bytes.Count(doc, []byte{0}) > len(doc)/4
}

// oddCharacter names the first character of a line, before its comment, that some programs
// put in the place of a plain one.
func oddCharacter(line string) string {
	line, _, _ = strings.Cut(line, "#")
	at := 0
	for _, r := range line {
		at++
		if class := classOf(r); class != charFine {
			c := Char{r, at}
			return fmt.Sprintf("%v: %s", c, c.advice(class))
		}
	}
	return ""
}

const key = `((?:[A-Za-z0-9_-]+|"[^"]*")(?:\.(?:[A-Za-z0-9_-]+|"[^"]*"))*)`

// backtick is a text that begins with one.
var backtick = regexp.MustCompile("^\\s*" + key + "\\s*=\\s*`")

// A slip is a line that is no TOML, and what it is taken for. The first that fits counts.
type slip struct {
	text *regexp.Regexp
	hint func(match []string) string
}

var slips = []slip{
	{regexp.MustCompile(`^(<<<<<<<|=======|>>>>>>>)`), says("git has left both sides of a merge here: keep one, and take its marks away")},
	{regexp.MustCompile(`^-----BEGIN `), says("this is a certificate or a key, and no configuration: name the right file")},
	{regexp.MustCompile(`^\[{1,2}[^\[\]]+\]{1,2}\s+` + key + `\s*=`), func(m []string) string {
		return fmt.Sprintf("a heading stands in a line of its own: begin a new one before %q", m[1])
	}},
	{regexp.MustCompile(`^(---|\+\+\+|@@)( |$)`), says("this is a diff: use `patch` to put it into a file")},
	{regexp.MustCompile("^(```|~~~)"), says("this mark is of the page that the text was copied from: take it away, here and at the end")},
	{regexp.MustCompile(`^>`), says("this mark is of a mail that quotes the text: take it away, here and in the other lines")},
	{regexp.MustCompile(`^(\$ |cat |echo |sudo |export |EOF$)`), says("this is for the shell: take it away, here and at the end")},
	{regexp.MustCompile(`^(//|;|--|/\*)`), says("a comment begins with \"#\"")},
	{regexp.MustCompile(`^` + key + `\s*=\s*("[^"]*"|'[^']*'|true|false|[^"'\s]+)\s+(//|;)`), func(m []string) string {
		return fmt.Sprintf("a comment begins with \"#\", not with %q", m[3])
	}},
	{regexp.MustCompile(`^` + key + `\s*(==|=>|:=|<-|->)`), func(m []string) string {
		return fmt.Sprintf("one \"=\" stands between a key and its value: write it for %q", m[2])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*\(`), func(m []string) string {
		return fmt.Sprintf("a list stands in square brackets: write %q", m[1]+" = [\"…\", \"…\"]")
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*\{\s*("[^"]*"|'[^']*')\s*[,}]`), func(m []string) string {
		return fmt.Sprintf("a list stands in square brackets: write %q", m[1]+" = [\"…\", \"…\"]")
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*\[[^"'\]]*[^"'\]\s\d{,\[]`), func(m []string) string {
		return fmt.Sprintf("text stands in quotes, in a list, too: write %q", m[1]+" = [\"…\", \"…\"]")
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*(\{.*)`), func(m []string) string {
		for _, entry := range bareEntry.FindAllStringSubmatch(quotedText.ReplaceAllString(m[2], `""`), -1) {
			if !isValue(entry[2]) {
				return fmt.Sprintf("text stands in quotes, in such a table, too: write %q", entry[1]+" = \""+entry[2]+"\"")
			}
		}
		return ""
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*\{(?:[^"']|"[^"]*"|'[^']*')*?\b` + key + `\s*:`), func(m []string) string {
		return fmt.Sprintf("a key and its value stand as in  key = value: write \"=\" behind %q, not \":\"", m[2])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*\{.*("[^"]*"|'[^']*')\s+` + key + `\s*=`), func(m []string) string {
		return fmt.Sprintf("a comma is missing between two entries of this table: write one before %q", m[3])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*"[^"]*"\s*,\s*"`), func(m []string) string {
		return fmt.Sprintf("several texts are a list, in square brackets: write %q", m[1]+" = [\"…\", \"…\"]")
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*[^"'\s\[{]+"\s*(#.*)?$`), says("a quote is missing at the front of this text: it begins with the same quote that it ends with")},
	{regexp.MustCompile(`^\[+\s*\]+`), says("there is no name in this heading: write as in [log], [bridge.NAME] or [[route]]")},
	{regexp.MustCompile(`^<`), says("this is a web page, or XML, and no configuration: name the right file, or fetch it anew")},
	{regexp.MustCompile(`^\{`), says("this is JSON: a configuration is TOML, as in configs/client.toml")},
	{regexp.MustCompile(`^\[\[[^\]]*\]?$`), says("the heading of such a table ends in \"]]\"")},
	{regexp.MustCompile(`^\[+[^\]"]*[^\]\s"A-Za-z0-9_.-][^\]"]*\]`), says("a name in a table's heading has letters, digits, \"-\" and \"_\"; any other stands in quotes, as in [bridge.\"a.b\"]")},
	{regexp.MustCompile(`^\[+[^\]"]*\S\s+[^\]\s][^\]"]*\]`), says("a name in a table's heading has no space in it: write \"-\" instead")},
	{regexp.MustCompile(`^\[[^\[\]]*$`), says("the heading of a table ends in \"]\"")},
	{regexp.MustCompile(`^` + key + `\s*:`), func(m []string) string {
		return fmt.Sprintf("a key and its value stand as in  key = value: write \"=\" behind %q, not \":\"", m[1])
	}},
	{regexp.MustCompile(`^` + key + `\s+(["'\[{]|\d|true|false)`), func(m []string) string {
		return fmt.Sprintf("\"=\" is missing behind %q: write as in  key = value", m[1])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*(?i:(true|yes|on)|(false|no|off))\s*(#.*)?$`), func(m []string) string {
		value := "false"
		switch {
		case m[2] == "true", m[3] == "false":
			return ""
		case m[2] != "":
			value = "true"
		}
		return fmt.Sprintf("yes and no are true and false, in small letters and without quotes: write %q", m[1]+" = "+value)
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*("[^"]*"|'[^']*'|true|false|\d+|\[.*\])\s*([;,])`), func(m []string) string {
		return fmt.Sprintf("nothing stands behind a value: take %q away", m[3])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*("[^"]*"|'[^']*'|true|false|\d+)\s+` + key + `\s*=`), func(m []string) string {
		return fmt.Sprintf("each key stands in a line of its own: begin a new one before %q", m[3])
	}},
	{regexp.MustCompile(`^` + key + `\s*(#.*)?$`), func(m []string) string {
		return fmt.Sprintf("there is no value behind %q: write as in  key = value", m[1])
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*0\d+\s*(#.*)?$`), says("a number has no zero in front; if it is a text, it stands in quotes")},
	{regexp.MustCompile(`^` + key + `\s*=\s*(#.*)?$`), func(m []string) string {
		return fmt.Sprintf("there is no value behind %q: write as in  key = value", m[1]+" =")
	}},
	{regexp.MustCompile(`^` + key + `\s*=\s*"[^"]*$`), says("a quote is missing at the end of this text: it ends with the same quote that it begins with")},
	{regexp.MustCompile(`^` + key + `\s*=\s*([^"'\[{\s][^"'#]*?)\s*(#.*)?$`), func(m []string) string {
		if isValue(m[2]) {
			return ""
		}
		hint := fmt.Sprintf("text stands in quotes: write %q", m[1]+" = \""+m[2]+"\"")
		if strings.Trim(m[2], "0123456789_+-") == "" {
			hint += "; a number has 18 digits at most"
		}
		return hint
	}},
}

// bareEntry is an entry of a table in one line, with a value that has no quotes.
var bareEntry = regexp.MustCompile(`[{,]\s*` + key + `\s*=\s*([^"'\[{\s,}][^"'\s,}]*)`)

// isValue tells whether a text can stand behind a "=" as it is.
func isValue(text string) bool {
	_, err := toml.Decode("x = "+text, &struct{}{})
	return err == nil
}

func says(text string) func([]string) string { return func([]string) string { return text } }

// defined says what to do about a key or a table that is there twice.
func defined(message string) string {
	m := regexp.MustCompile(`'([^']*)' has already been defined`).FindStringSubmatch(message)
	if m == nil {
		return ""
	}
	return fmt.Sprintf("%q is there already, further up: a table has one heading, and each key stands in it once", m[1])
}
