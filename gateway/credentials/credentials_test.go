package credentials_test

import (
	"fmt"
	"testing"

	"ptgate/gateway/credentials"
)

func TestValid(t *testing.T) {
	users := map[string]string{"alice": "secret", "bob": ""}
	for _, tt := range []struct {
		users          map[string]string
		user, password string
		want           bool
	}{
		{users, "alice", "secret", true},
		{users, "bob", "", true},
		{users, "alice", "secreT", false},
		{users, "alice", "", false},
		{users, "alice", "secret and more", false},
		{users, "bob", "secret", false},
		{users, "mallory", "", false},
		{users, "Alice", "secret", false},
		{users, "", "", false},
		{nil, "", "", false},
	} {
		if got := credentials.Valid(tt.users, tt.user, tt.password); got != tt.want {
			t.Errorf("%q, %q: %v", tt.user, tt.password, got)
		}
	}
}

func Example() {
	users := map[string]string{"alice": "secret"}
	fmt.Println(credentials.Valid(users, "alice", "secret"), credentials.Valid(users, "mallory", ""))
	// Output: true false
}
