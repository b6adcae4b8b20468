package network

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// maxRoutes bounds what is read of the kernel's table, in bytes. The default route is
// near its beginning.
const maxRoutes = 64 << 10

// defaultRoute names the interface and the router of the default route; "" if there is
// none.
func defaultRoute(six bool) string {
	name, parse := "/proc/net/route", parseRoutes
	if six {
		name, parse = "/proc/net/ipv6_route", parseRoutes6
	}
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	return parse(io.LimitReader(f, maxRoutes))
}

// parseRoutes reads the kernel's table for IPv4: interface, destination, gateway, flags,
// reference count, use, metric, mask, and three more. Numbers are in hex, but the metric.
func parseRoutes(r io.Reader) string {
	return best(r, func(f []string) (route, metric string, ok bool) {
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			return "", "", false
		}
		return f[0] + " " + f[2], f[6], true
	}, 10)
}

// parseRoutes6 reads the one for IPv6: destination, its prefix length, source, its prefix
// length, next hop, metric, reference count, use, flags, interface. Numbers are in hex.
func parseRoutes6(r io.Reader) string {
	zero := strings.Repeat("0", 32)
	return best(r, func(f []string) (route, metric string, ok bool) {
		// Every box has such a route on the loopback interface, which leads nowhere.
		if len(f) < 10 || f[0] != zero || f[1] != "00" || f[9] == "lo" {
			return "", "", false
		}
		return f[9] + " " + f[4], f[5], true
	}, 16)
}

// best gives the route with the lowest metric.
func best(r io.Reader, parse func(fields []string) (route, metric string, ok bool), base int) (found string) {
	least := uint64(0)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		route, text, ok := parse(strings.Fields(lines.Text()))
		if !ok {
			continue
		}
		metric, err := strconv.ParseUint(text, base, 64)
		if err == nil && (found == "" || metric < least) {
			found, least = route, metric
		}
	}
	return found
}
