package config

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A TextKind says what a pasted text is for, and so what may stand in it.
type TextKind uint8

// The kinds of text.
const (
	// TextPlain is an address, a URL, a key or an arg. Its punctuation is that of
	// ASCII.
	TextPlain TextKind = iota
	// TextLine is a bridge line: as TextPlain, but spaces of any kind may part its
	// words.
	TextLine
	// TextName has a host's name in it, which may have letters of any script. Package
	// destination checks what else is wrong with a name.
	TextName
	// TextSecret is a user or a password. The other side has the same one, so nothing
	// is left out of it.
	TextSecret
)

// A Char is a character that is probably in a text by mistake, and its place.
type Char struct {
	Rune rune
	At   int // from 1, in characters
}

// String names the character and its place.
func (c Char) String() string { return fmt.Sprintf("%s at character %d", c.Name(), c.At) }

// Name names the character.
func (c Char) Name() string {
	name, ok := charNames[c.Rune]
	if !ok {
		name, ok = classNames[classOf(c.Rune)]
	}
	if !ok {
		return fmt.Sprintf("%U (%q)", c.Rune, string(c.Rune))
	}
	return fmt.Sprintf("%U (%s)", c.Rune, name)
}

// Pasted checks a text that people copy from mail, chats, web pages and documents.
// These add characters that nobody sees, and put others in the place of plain ones.
//
// An invisible character without a width, such as a soft hyphen, is left out: clean is
// text without such characters, and removed lists them. Every other character might
// stand for something, such as a curly quote for a plain one. The first of them that
// may not stand in this kind of text is an error. The error names that character and
// quotes nothing else.
func Pasted(text string, kind TextKind) (clean string, removed []Char, err error) {
	if isASCII(text) {
		return text, nil, nil
	}
	var b strings.Builder
	at := 0
	for _, r := range text { // a byte that is no UTF-8 is a U+FFFD
		at++
		class, c := classOf(r), Char{r, at}
		if (class == charInvisible || class == charVariant) && kind != TextSecret {
			removed = append(removed, c)
			continue
		}
		if err == nil && !kind.allows(class) {
			err = fmt.Errorf("%v: %s", c, c.advice(class))
		}
		b.WriteRune(r)
	}
	return b.String(), removed, err
}

// visible is a name without its invisible characters.
func visible(name string) string {
	clean, _, _ := Pasted(name, TextName)
	return clean
}

// lookalike is the first letter of a script whose letters look like plain ones. At is 0 if
// there is none.
func lookalike(text string) Char {
	at := 0
	for _, r := range text {
		if at++; unicode.In(r, unicode.Cyrillic, unicode.Greek, unicode.Armenian) && unicode.IsLetter(r) {
			return Char{r, at}
		}
	}
	return Char{}
}

// mixedUp is lookalike for a host's name. A label that is all of another script is no mistake.
func mixedUp(name string) Char {
	before := 0
	for label := range strings.SplitSeq(name, ".") {
		if r := lookalike(label); r.At > 0 && strings.ContainsAny(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz") {
			return Char{r.Rune, before + r.At}
		}
		before += utf8.RuneCountInString(label) + 1
	}
	return Char{}
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// charClass is what makes a character odd.
type charClass uint8

const (
	charFine      charClass = iota
	charInvisible           // has neither a shape nor a width
	charVariant             // invisible: says how the character before it looks
	charJoiner              // invisible, but some scripts need it in names
	charSpace
	charQuote
	charDash
	charWide     // a full-width form of an ASCII character
	charEllipsis // stands where a program has cut a long text off
	charControl
	charDamaged
)

func (k TextKind) allows(c charClass) bool {
	switch c {
	case charFine:
		return true
	case charSpace:
		return k == TextLine
	case charJoiner, charWide: // IDNA knows what to do with them in names
		return k == TextName || k == TextSecret
	case charQuote, charDash, charEllipsis, charVariant: // keyboards write a charVariant behind emoji
		return k == TextSecret
	}
	return false
}

func classOf(r rune) charClass {
	switch {
	case r < utf8.RuneSelf:
		return charFine
	case r == '\u200c' || r == '\u200d':
		return charJoiner
	case unicode.IsSpace(r):
		return charSpace
	case unicode.IsControl(r):
		return charControl
	case r == utf8.RuneError:
		return charDamaged
	case unicode.Is(unicode.Variation_Selector, r):
		return charVariant
	case invisible(r):
		return charInvisible
	case unicode.In(r, unicode.Pi, unicode.Pf) || r == '\u201a' || r == '\u201e' || '\u2032' <= r && r <= '\u2037':
		return charQuote
	case '\u2010' <= r && r <= '\u2015' || r == '\u2212' || r == '\ufe58' || r == '\ufe63':
		return charDash
	case '\uff01' <= r && r <= '\uff5e':
		return charWide
	case r == '\u2026' || r == '\u22ef':
		return charEllipsis
	}
	return charFine
}

// invisible is Unicode's property Default_Ignorable_Code_Point (UAX #44), without the
// variation selectors: the characters that are not drawn where they are not understood.
func invisible(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point) &&
		!unicode.In(r, unicode.Prepended_Concatenation_Mark) &&
		(r < '\ufff9' || r > '\ufffb') && (r < 0x13430 || r > 0x13440)
}

var classNames = map[charClass]string{
	charInvisible: "an invisible character",
	charVariant:   "an invisible character",
	charJoiner:    "an invisible joiner",
	charSpace:     "a special space",
	charQuote:     "a typographic quote",
	charDash:      "a typographic dash",
	charWide:      "a full-width character",
	charEllipsis:  "an ellipsis",
	charControl:   "a control character",
	charDamaged:   "a damaged character",
}

// charNames has those that are met most often.
var charNames = map[rune]string{
	'\u00a0': "no-break space",
	'\u00ad': "soft hyphen",
	'\u200b': "zero width space",
	'\u200c': "zero width non-joiner",
	'\u200d': "zero width joiner",
	'\u200e': "left-to-right mark",
	'\u200f': "right-to-left mark",
	'\u2011': "non-breaking hyphen",
	'\u2013': "en dash",
	'\u2014': "em dash",
	'\u2018': "left single quotation mark",
	'\u2019': "right single quotation mark",
	'\u201c': "left double quotation mark",
	'\u201d': "right double quotation mark",
	'\u202f': "narrow no-break space",
	'\u2060': "word joiner",
	'\u2069': "pop directional isolate",
	'\u2212': "minus sign",
	'\u3000': "ideographic space",
	'\ufeff': "byte order mark",
}

// advice says what to do about a character that must not be there.
func (c Char) advice(class charClass) string {
	switch class {
	case charInvisible, charJoiner:
		return "it can't be seen: take it out"
	case charSpace:
		return "write a plain space, or none"
	case charQuote:
		return "write a plain quote, or none"
	case charDash:
		return `write a plain "-"`
	case charWide:
		return fmt.Sprintf("write a plain %q", string(c.Rune-0xfee0))
	case charEllipsis:
		return "a part is missing there: copy the whole text"
	}
	return "copy the text anew"
}

// leftOut tells what was removed from a text.
func leftOut(removed []Char) string {
	if len(removed) == 1 {
		return fmt.Sprintf("%v came along with the text: it is left out", removed[0])
	}
	return fmt.Sprintf("%d invisible characters came along with the text, the first is %v: they are left out", len(removed), removed[0])
}

// pasted is str for a text that may have been pasted.
func (t *table) pasted(key string, kind TextKind) string {
	text := t.text(key, "")
	if text == "" {
		return ""
	}
	text, ok := t.look(t.lineOf(key), key, text, kind)
	if !ok {
		t.bad = append(t.bad, key)
		return ""
	}
	return text
}

// pastedList is list for texts that may have been pasted. It leaves out those with an
// error, which it reports.
func (t *table) pastedList(key string, kind TextKind) []item {
	var fine []item
	for _, it := range t.list(key) {
		if text, ok := t.look(it.line, key, it.text, kind); ok {
			fine = append(fine, item{text, it.line})
		}
	}
	return fine
}

// look checks a pasted text and returns it as Pasted does. It reports what Pasted has
// found; what is the text's name in the report.
func (t *table) look(line int, what, text string, kind TextKind) (clean string, ok bool) {
	clean, removed, err := Pasted(text, kind)
	if err != nil {
		t.fail(line, "%s: %v", what, err)
		return "", false
	}
	if len(removed) > 0 {
		t.warn(line, "%s: %s", what, leftOut(removed))
	}
	return clean, true
}
