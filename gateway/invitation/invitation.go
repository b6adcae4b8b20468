// Package invitation reads and writes the links by which a box takes in a user. A link has
// all that a client needs: who the user is, who the box is, and every way to it.
//
//	ptgate://alice:SECRET@BOX/obfs4,192.0.2.10:443,cert=…,iat-mode=0/SUM
//
// BOX is the box's public key in hex. Then there is a part for each bridge line, with commas
// for spaces. SUM tells whether the link has come whole: messengers cut and change links. A
// link has no character that means something to a shell.
package invitation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"ptgate/adapter"
	"ptgate/gateway/session"
	"ptgate/gateway/users"
)

// Scheme is what a link begins with.
const Scheme = "ptgate://"

// An Invitation is what a link says.
type Invitation struct {
	User, Secret string
	Box          session.Box
	Lines        []adapter.BridgeLine // at least one
}

// String is the link. It holds secrets.
func (v *Invitation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s:%s@%x", Scheme, escape(v.User), escape(v.Secret), v.Box[:])
	for _, l := range v.Lines {
		words := strings.Fields(l.String())
		for i, w := range words {
			words[i] = escape(w)
		}
		b.WriteString("/" + strings.Join(words, ","))
	}
	return b.String() + "/" + sum(b.String())
}

// sum is for accidents, not for attackers: who can change a link can make one.
func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:4])
}

// literal are the characters that stand for themselves in a part of a link, and plain are
// all that a link may have.
const (
	literal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=:+"
	plain   = literal + "%@,/"
)

// escape writes what could mean something else as %XX.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(literal, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

var (
	errNoLink = errors.New("this is no invitation: one begins with " + Scheme + "; copy the whole of what `ptgate invite` on the server prints")
	errCut    = errors.New("the invitation has not come whole: a part of it is missing or changed; copy all of it, or ask for the file or the QR code")
	errTwo    = errors.New("there is more than one invitation: give one at a time")
)

// A BrokenError is about a link in which, or behind which, there is a character that no link
// has, before it has come to its end.
type BrokenError struct {
	Rune         rune
	Line, Column int // its place in the whole text, from 1, in characters
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("%v (line %d, column %d: %U, which no link has)", errCut, e.Line, e.Column, e.Rune)
}

// Unwrap tells that the link has not come whole.
func (e *BrokenError) Unwrap() error { return errCut }

// index is where the first link begins in a text, or -1. Some programs write the scheme in
// capitals.
func index(text string) int {
	for i := 0; i+len(Scheme) <= len(text); i++ {
		if strings.EqualFold(text[i:i+len(Scheme)], Scheme) {
			return i
		}
	}
	return -1
}

// In tells whether a text seems to have a link in it.
func In(text string) bool { return index(text) >= 0 }

// Find finds the one link in a text. Words and quotes may stand around it, and mail may have
// folded it, put "> " before its lines, or encoded it: its sum tells where it ends, and that
// it is whole. An error has nothing of the text in it, but for one character that no link
// has.
func Find(text string) (*Invitation, error) {
	v, err := find(text)
	if errors.Is(err, errCut) {
		// The sum decides which reading is the right one.
		if plain := unquote(text); plain != text {
			if v, err := find(plain); err == nil {
				return v, nil
			}
		}
	}
	return v, err
}

var (
	soft = regexp.MustCompile(`=\s+`)
	hexa = regexp.MustCompile(`=[0-9A-Fa-f]{2}`)
)

// unquote undoes quoted-printable (RFC 2045 section 6.7). The line break behind a "=" may have
// become a space.
func unquote(text string) string {
	return hexa.ReplaceAllStringFunc(soft.ReplaceAllString(text, ""), func(s string) string {
		b, _ := hex.DecodeString(s[1:])
		return string(b)
	})
}

func find(text string) (*Invitation, error) {
	var found *Invitation
	whole := ""
	err := errNoLink
	rest := text
	for at := index(rest); at >= 0; at = index(rest) {
		rest = rest[at+len(Scheme):]
		link, v, bad, e := first(rest)
		switch {
		case e != nil:
			if found == nil {
				err = e
				if bad >= 0 {
					err = broken(text, len(text)-len(rest)+bad)
				}
			}
		case found != nil && link != whole:
			return nil, errTwo
		default:
			found, whole, err = v, link, nil
		}
	}
	return found, err
}

// broken is the error about the character of text at a byte.
func broken(text string, at int) error {
	before := text[:at]
	r, _ := utf8.DecodeRuneInString(text[at:])
	line := before[strings.LastIndexByte(before, '\n')+1:]
	return &BrokenError{r, strings.Count(before, "\n") + 1, utf8.RuneCountInString(line) + 1}
}

// first reads the link whose text begins here, behind the scheme. If a character stops it,
// bad is where that stands; otherwise bad is -1.
func first(text string) (link string, v *Invitation, bad int, err error) {
	next := index(text)
	b := []byte(Scheme)
	for i, c := range text {
		switch {
		case i == next:
			return "", nil, -1, errCut
		case c < 0x80 && strings.ContainsRune(plain, c):
			b = append(b, byte(c))
			// The sum is the last part, of eight digits.
			if n := len(b) - 9; n > len(Scheme) && b[n] == '/' && sum(string(b[:n])) == string(b[n+1:]) {
				v, err := Parse(string(b))
				return string(b), v, -1, err
			}
		case c == '>' || unicode.IsSpace(c) || unicode.In(c, unicode.Cf, unicode.Mn):
			// what mail puts there, or nobody sees
		default:
			return "", nil, i, errCut
		}
	}
	return "", nil, -1, errCut
}

// Parse reads a link.
func Parse(link string) (*Invitation, error) {
	link = strings.TrimSpace(link)
	rest, ok := strings.CutPrefix(link, Scheme)
	if !ok {
		return nil, errNoLink
	}
	end := strings.LastIndexByte(link, '/')
	parts := strings.Split(rest, "/")
	if len(parts) < 3 || sum(link[:end]) != link[end+1:] {
		return nil, errCut
	}
	who, box, _ := strings.Cut(parts[0], "@")
	user, secret, _ := strings.Cut(who, ":")
	v := &Invitation{}
	var err error
	if v.User, err = url.PathUnescape(user); err != nil {
		return nil, errCut
	}
	if v.Secret, err = url.PathUnescape(secret); err != nil {
		return nil, errCut
	}
	raw, err := hex.DecodeString(box)
	if err != nil || len(raw) != len(v.Box) || len(v.Secret) > 255 || v.Secret == "" {
		return nil, errCut
	}
	copy(v.Box[:], raw)
	if err := users.CheckName(v.User); err != nil {
		return nil, fmt.Errorf("the invitation: %w", err)
	}
	for _, p := range parts[1 : len(parts)-1] {
		words := strings.Split(p, ",")
		for i := range words {
			if words[i], err = url.PathUnescape(words[i]); err != nil {
				return nil, errCut
			}
		}
		l, err := adapter.ParseBridgeLine(strings.Join(words, " "))
		if err != nil {
			return nil, fmt.Errorf("the invitation: %w", err)
		}
		v.Lines = append(v.Lines, l)
	}
	return v, nil
}
