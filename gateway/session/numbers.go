package session

import (
	"slices"
)

// maxGaps is how many gaps a peer may leave in the numbers that it uses.
const maxGaps = 1 << 12

// numbers is a set of numbers that a peer uses in about their order: those of streams, or
// of carriers.
type numbers struct {
	next uint64 // all from here on are unused
	gaps []gap  // the others that are unused, in order
}

// A gap is the numbers from, …, to-1.
type gap struct{ from, to uint64 }

// use notes that n is used, and tells whether it was unused before.
func (s *numbers) use(n uint64) (fresh bool, err error) {
	switch {
	case n == s.next:
		s.next++
		return true, nil
	case n > maxOffset:
		return false, broken("the number %d is too large", n)
	}
	var left []gap // what is left of the gap with n
	i := len(s.gaps)
	if n > s.next {
		left = append(left, gap{s.next, n})
		s.gaps = append(s.gaps, gap{s.next, n + 1})
		s.next = n + 1
	} else {
		i, _ = slices.BinarySearchFunc(s.gaps, n, func(g gap, n uint64) int {
			if g.to <= n {
				return -1
			}
			return 1
		})
		if i == len(s.gaps) || n < s.gaps[i].from {
			return false, nil
		}
		left = append(left, gap{s.gaps[i].from, n}, gap{n + 1, s.gaps[i].to})
	}
	left = slices.DeleteFunc(left, func(g gap) bool { return g.from == g.to })
	if s.gaps = slices.Replace(s.gaps, i, i+1, left...); len(s.gaps) > maxGaps {
		return false, broken("there are too many gaps before the number %d", s.next)
	}
	return true, nil
}
