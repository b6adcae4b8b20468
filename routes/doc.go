// Package routes finds the rule that takes a destination.
//
// A rule is a list of patterns; rules and patterns are numbered in the order in
// which they are written, and the first match wins: the lowest rule, and in it
// the lowest pattern. What a rule means is the caller's business, and so is a
// destination that no rule takes.
//
// A pattern is a host and, optionally, ports:
//
//	name            exactly that name
//	*.name          every name below it
//	.name           the name and every name below it
//	*               everything: names and addresses
//	192.0.2.7       a literal address
//	192.0.2.0/24    a network of literal addresses
//	2001:db8::/32   the same for IPv6; in brackets where a port follows
//	HOST:443        one port
//	HOST:80-90      a range of ports
//
// Names and addresses never meet: a name is not resolved, so an address pattern
// takes only a destination that was asked for as an address, and a name pattern
// only one asked for by name.
//
// The package is pure: no input or output, no clock, the standard library only.
// A Table is made once and never changes; any number of goroutines may ask it.
package routes
