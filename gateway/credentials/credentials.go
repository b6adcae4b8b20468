// Package credentials checks user names and passwords, for the fronts that
// applications use and for the exit alike.
package credentials

import (
	"crypto/sha256"
	"crypto/subtle"
)

// Valid tells whether users, which maps names to passwords, has this pair. The time
// it takes does not depend on how much of a password is right.
func Valid(users map[string]string, user, password string) bool {
	want, known := users[user]
	// The hashes are of one length, whatever the passwords' lengths are.
	a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && known
}
