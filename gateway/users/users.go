// Package users reads and changes the file of an exit's users: [exit] users_file. Each line
// is one user, so that an operator can write, generate and copy it with any tool:
//
//	alice $sha256$9f86d0…0a08 expires=2026-12-31 rate=20Mbit streams=200 quota=50GB/month allow=*.example.org,10.1.0.0/16:443
//
// First the name, then what the password is checked against, then the limits in any order.
// What is left out has no limit. Empty lines, and what begins with "#", mean nothing.
//
// The package opens no file, and knows nothing of who is connected.
package users

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"ptgate/gateway/credentials"
	"ptgate/gateway/destination"
	"ptgate/routes"
)

// A User is one line.
type User struct {
	Name string
	// Secret is what the password is checked against: credentials.Digest of a random one.
	Secret  string
	Expires time.Time // zero: never
	Rate    int64     // bytes a second, in each direction; 0: any
	Streams int       // open at the same time; 0: limits.client_streams
	Quota   int64     // bytes in a calendar month, both directions together; 0: any
	// Allow must match what the user asks for, beside [exit] allow. Empty: everything does.
	Allow []routes.Pattern
}

// Expired tells whether the user's time is over.
func (u *User) Expired(now time.Time) bool { return !u.Expires.IsZero() && !now.Before(u.Expires) }

// A Problem is a line that can't be used.
type Problem struct {
	Line    int
	Message string
}

// Header is how a new file begins.
const Header = `# The users of this exit, one a line. ` + "`ptgate invite`" + ` and ` + "`ptgate revoke`" + ` write it; ` + "`ptgate reload`" + `
# reads it. It may be copied to other boxes. A line that is written by hand has
#   NAME $sha256$HEX [expires=2026-12-31] [rate=20Mbit] [streams=200] [quota=50GB/month] [allow=PATTERN,…]
# where HEX is the SHA-256 of the user's secret. That has to be random, such as 16 random bytes
# in hex: whoever gets this file could find out a shorter one.
`

// Parse reads a file. The lines have the place of each user.
func Parse(text string) (all []User, lines []int, problems []Problem) {
	first := map[string]int{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		u, err := parseLine(fields)
		if err == nil && first[u.Name] > 0 {
			err = fmt.Errorf("the user %q is there already (line %d)", u.Name, first[u.Name])
		}
		if err != nil {
			problems = append(problems, Problem{n, err.Error()})
			continue
		}
		first[u.Name] = n
		all, lines = append(all, u), append(lines, n)
	}
	return all, lines, problems
}

// CheckName returns an error for a name that can't be a user's. Links, logs and lists of
// processes have the name.
func CheckName(name string) error {
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.@", c) >= 0) {
			return fmt.Errorf("the user name %q: letters, digits, \"-\", \"_\", \".\" and \"@\" only", name)
		}
	}
	if name == "" || len(name) > 64 {
		return fmt.Errorf("the user name %q: from 1 to 64 letters", name)
	}
	return nil
}

func parseLine(fields []string) (u User, err error) {
	if strings.ContainsAny(fields[0], ":$=") {
		// As in a file of htpasswd. What stands here may be a secret.
		return u, errors.New("a line is as in  NAME $sha256$…, with a space behind the name: `ptgate invite NAME` writes such lines")
	}
	u.Name = fields[0]
	if err := CheckName(u.Name); err != nil {
		return u, err
	}
	if len(fields) < 2 || !credentials.IsDigest(fields[1]) {
		return u, fmt.Errorf("user %q: behind the name stands $sha256$ and 64 digits of small hex, the SHA-256 of the user's secret: `ptgate invite` writes such lines", u.Name)
	}
	u.Secret = fields[1]
	seen := map[string]bool{}
	for _, f := range fields[2:] {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return u, fmt.Errorf("user %q: behind the digest stand expires=, rate=, streams=, quota= or allow= only", u.Name)
		}
		if seen[key] {
			return u, fmt.Errorf("user %q: %s is there twice", u.Name, key)
		}
		seen[key] = true
		if err := u.Set(key, value); err != nil {
			return u, fmt.Errorf("user %q: %w", u.Name, err)
		}
	}
	return u, nil
}

// Set reads one limit.
func (u *User) Set(key, value string) (err error) {
	switch key {
	case "expires":
		u.Expires, err = ParseTime(value)
	case "rate":
		u.Rate, err = ParseRate(value)
	case "streams":
		if u.Streams, err = strconv.Atoi(value); err != nil || u.Streams < 1 {
			err = fmt.Errorf("streams is %q: write a whole number from 1 on", value)
		}
	case "quota":
		u.Quota, err = ParseQuota(value)
	case "allow":
		for _, text := range strings.Split(value, ",") {
			p, err := routes.ParsePattern(text, canonical)
			if err != nil {
				return fmt.Errorf("allow: %w", err)
			}
			u.Allow = append(u.Allow, p)
		}
	default:
		err = fmt.Errorf("%q is neither expires=, rate=, streams=, quota= nor allow=", key)
	}
	return err
}

func canonical(host string) (string, error) {
	name, err := destination.Canonical(host)
	if err != nil {
		return "", errors.New(strings.TrimPrefix(err.Error(), destination.ErrInvalid.Error()+": "))
	}
	return name, nil
}

// String is the user's line.
func (u *User) String() string {
	return strings.Join(append([]string{u.Name, u.Secret}, u.Limits()...), " ")
}

// Limits are the words of the line behind the secret.
func (u *User) Limits() (words []string) {
	add := func(key, value string) { words = append(words, key+"="+value) }
	if !u.Expires.IsZero() {
		add("expires", u.Expires.UTC().Format(time.RFC3339))
	}
	if u.Rate > 0 {
		add("rate", FormatRate(u.Rate))
	}
	if u.Streams > 0 {
		add("streams", strconv.Itoa(u.Streams))
	}
	if u.Quota > 0 {
		add("quota", formatUnit(u.Quota, sizes)+perMonth)
	}
	if len(u.Allow) > 0 {
		var texts []string
		for _, p := range u.Allow {
			texts = append(texts, p.String())
		}
		add("allow", strings.Join(texts, ","))
	}
	return words
}

// Put returns the file with the line of u: in the place of the one with its name, or at
// the end. All other lines stay as they are.
func Put(text string, u *User) string {
	out, found := edit(text, u.Name, u.String()+"\n")
	if found {
		return out
	}
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return out + u.String() + "\n"
}

// Remove returns the file without the user called name. found: it had one.
func Remove(text, name string) (out string, found bool) { return edit(text, name, "") }

func edit(text, name, fresh string) (out string, found bool) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == name {
			if !found {
				b.WriteString(fresh)
			}
			found = true
			continue
		}
		b.WriteString(line)
	}
	return b.String(), found
}

// ParseTime reads a day, which begins in UTC, or a moment as of RFC 3339.
func ParseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("expires is %q: write a day as in 2026-12-31, or a moment as in 2026-12-31T12:00:00Z", s)
}

type unit struct {
	name string
	size int64
}

// Units in the order in which a number is written with the first that fits.
var (
	rates = []unit{{"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8}}
	sizes = []unit{{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}
)

const (
	perMonth = "/month"
	// minRate is 64 kbit. With less, a connection looks like one on which nothing moves.
	minRate = 8000
)

// ParseRate reads bits in a second as in "20Mbit", and returns bytes in a second.
func ParseRate(s string) (int64, error) {
	n, ok := parseUnit(s, rates)
	if !ok || n < minRate {
		return 0, fmt.Errorf("rate is %q: write bits in a second as in 20Mbit; the units are kbit, Mbit and Gbit, and 64kbit is the least", s)
	}
	return n, nil
}

// FormatRate writes what ParseRate returns.
func FormatRate(n int64) string { return formatUnit(n, rates) }

// ParseQuota reads bytes in a month as in "50GB/month".
func ParseQuota(s string) (int64, error) {
	n, ok := parseUnit(strings.TrimSuffix(s, perMonth), sizes)
	if !ok || n < 1 {
		return 0, fmt.Errorf("quota is %q: write bytes in a month as in 50GB/month; the units are kB, MB, GB, TB, MiB, GiB and TiB", s)
	}
	return n, nil
}

func parseUnit(s string, units []unit) (int64, bool) {
	name := strings.TrimLeft(s, "0123456789")
	n, err := strconv.ParseInt(s[:len(s)-len(name)], 10, 64)
	i := slices.IndexFunc(units, func(u unit) bool { return u.name == name })
	if err != nil || i < 0 || n > math.MaxInt64/units[i].size {
		return 0, false
	}
	return n * units[i].size, true
}

func formatUnit(n int64, units []unit) string {
	for _, u := range units {
		if n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
