// Package routes finds the rule that matches a destination.
//
// A rule is a list of patterns. Rules and patterns are numbered in the order in
// which they are written. The first match wins: the lowest rule, and in it the
// lowest pattern. The caller decides what a rule means, and what happens if no
// rule matches.
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
// No name is resolved. So an address pattern matches only a destination that is
// an address, and a name pattern only one that is a name.
//
// The package does no input or output, has no clock, and imports only the
// standard library. A Table is made once and never changes; any number of
// goroutines may use it.
package routes
