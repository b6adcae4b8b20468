package exit

import (
	"sync"

	"ptgate/gateway/relay"
)

// users counts the places of each user, so that one leaves room for the others.
type users struct {
	mu    sync.Mutex
	count map[string]int
}

// A userPlace is a place among those of a user, and one of place.
type userPlace struct {
	users *users
	user  string
	most  int
	place Place
	// halves has the user's half-closed pairs, in the group userGroup.
	halves *relay.Halves
}

func userGroup(user string) string { return "user " + user }

// Acquire implements Place.
func (p userPlace) Acquire() bool {
	u := p.users
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count[p.user] >= p.most && !p.halves.End(userGroup(p.user)) || !p.place.Acquire() {
		return false
	}
	if u.count == nil {
		u.count = map[string]int{}
	}
	u.count[p.user]++
	return true
}

// Release implements Place.
func (p userPlace) Release() {
	u := p.users
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count[p.user]--; u.count[p.user] == 0 {
		delete(u.count, p.user)
	}
	p.place.Release()
}

// UserStreams tells for each of these users how many streams are open.
func (e *Exit) UserStreams(names map[string]string) map[string]int {
	u := &e.users
	u.mu.Lock()
	defer u.mu.Unlock()
	streams := make(map[string]int, len(names))
	for name := range names {
		streams[name] = u.count[name]
	}
	return streams
}
