package adapter

import (
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// WithoutAddresses returns err with another text, for a log that must not show
// clients, destinations or bridge args. errors.Is and errors.As work on the result as
// on err.
//
// The text has only parts that are known to be safe. Of an error of a known type, it
// has the fields that say what went wrong, but not those that say where. Of all other
// texts, it keeps plain words and small numbers, which can't be an address, a URL, a
// key or a host name with a dot. "…" replaces everything else.
//
// It does not recognize a host name without a dot in an error of an unknown type,
// unless the name is in quotes or after the word "lookup".
func WithoutAddresses(err error) error {
	if err == nil {
		return nil
	}
	if text := safeText(err); text != err.Error() {
		return &safeError{text, err}
	}
	return err
}

type safeError struct {
	text string
	err  error
}

func (e *safeError) Error() string { return e.text }
func (e *safeError) Unwrap() error { return e.err }

func safeText(err error) string {
	switch e := err.(type) {
	case nil:
		return ""
	case *safeError:
		return e.text
	case *StartError:
		return fmt.Sprintf("start %q: %s: %s", e.Program, e.Stage, safeText(e.Err))
	case *ExitError:
		return fmt.Sprintf("transport program ended: %v", e.State)
	case *MethodError:
		return fmt.Sprintf("transport %q: %s", e.Transport, safeText(e.Err))
	case *net.OpError:
		return e.Op + ": " + safeText(e.Err)
	case *net.DNSError:
		switch {
		case e.IsNotFound:
			return "name look-up: no such host"
		case e.IsTimeout:
			return "name look-up: timeout"
		}
		return "name look-up failed"
	case *net.AddrError:
		return plainWords(e.Err)
	case *net.ParseError:
		return "invalid " + e.Type
	case *url.Error:
		return e.Op + ": " + safeText(e.Err)
	case *fs.PathError: // files are the configuration's
		return e.Op + " " + e.Path + ": " + safeText(e.Err)
	case *exec.Error: // so are programs
		return fmt.Sprintf("exec: %q: %s", e.Name, safeText(e.Err))
	case syscall.Errno:
		return e.Error()
	case x509.HostnameError:
		return "the certificate is for another name"
	case x509.UnknownAuthorityError:
		return "the certificate is of an unknown authority"
	case x509.CertificateInvalidError:
		if e.Reason == x509.Expired {
			return "the certificate has expired or is not yet valid"
		}
		return "the certificate is not valid"
	case interface{ Unwrap() error }:
		return around(err.Error(), e.Unwrap())
	case interface{ Unwrap() []error }:
		return around(err.Error(), e.Unwrap()...)
	}
	return plainWords(err.Error())
}

// around is a text that quotes errors: these in their safe form, in the order in
// which they stand, and the words of what is around them.
func around(text string, quoted ...error) string {
	var b strings.Builder
	for _, err := range quoted {
		if err == nil {
			continue
		}
		if before, after, ok := strings.Cut(text, err.Error()); ok {
			b.WriteString(plainWords(before) + safeText(err))
			text = after
		}
	}
	return b.String() + plainWords(text)
}

// omitted stands for what is left out.
const omitted = "…"

// plainWords leaves out of a text whatever may say where.
func plainWords(text string) string {
	var b strings.Builder
	last := ""
	for text != "" {
		switch c := text[0]; c {
		case ' ', '\n', '\t':
			b.WriteByte(c)
			text = text[1:]
		case '"', '`', '\'':
			b.WriteString(omitted)
			text = text[quotedLen(text):]
		default:
			word := text
			if i := strings.IndexAny(text, " \n\t\"`"); i >= 0 {
				word = text[:i]
			}
			text = text[len(word):]
			core := strings.TrimRight(strings.TrimLeft(word, "(["), ")],.:;!?")
			if last == "lookup" || strings.Contains(word, "::") || !plain(core) {
				before, after, _ := strings.Cut(word, core)
				word = before + omitted + after
			}
			b.WriteString(word)
			last = core
		}
	}
	return b.String()
}

// quotedLen is the length of the quoted text that s begins with: all of s where the
// quote does not end.
func quotedLen(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && s[0] == '"':
			i++
		case s[i] == s[0]:
			return i + 1
		}
	}
	return len(s)
}

// maxWord is the length of the longest plain word: a key is longer.
const maxWord = 20

// plain tells whether s is a word, a small number or a time.
func plain(s string) bool {
	if s == "i/o" || s == "" {
		return true
	}
	if _, err := time.ParseDuration(s); err == nil {
		return true
	}
	if _, err := strconv.ParseUint(s, 0, 16); err == nil { // also 0x01
		return true
	}
	letters := strings.TrimRight(s, "0123456789") // obfs4, x509
	if len(letters) > maxWord || len(s)-len(letters) > 3 {
		return false
	}
	for i := range len(letters) {
		switch c := letters[i] | 0x20; {
		case 'a' <= c && c <= 'z':
		case i > 0 && i < len(letters)-1 && strings.IndexByte("-_'", letters[i]) >= 0:
		default:
			return false
		}
	}
	return letters != ""
}
