package config

import (
	"fmt"
	"slices"
	"strings"

	"ptgate/adapter/builtin"
)

// places are the tables in which a key can stand, for a message about one that stands in
// another table; "" is the top of the file.
var places = map[string][]string{
	"":           {"state_dir"},
	"[log]":      {"level", "format"},
	"[listen]":   {"mixed", "socks5", "http", "socket_mode", "owners", "allow", "users"},
	"[bridge.…]": {"line", "transport", "address", "args", "far", "user", "password", "optimistic", "carriers", "budget"},
	"[[route]]":  {"to", "to_file", "via", "pick", "private"},
	"[[serve]]":  {"transport", "bind", "public", "options", "allow", "deny", "forward", "tell", "trusted_hops", "trusted_proxies", "proxy_protocol", "proxy_from", "tls", "decoy"},
	"[exit]":     {"allow", "deny", "users"},
	"[admin]":    {"socket_mode", "owners", "users"},
	"[pt.…]":     {"exec", "transports", "proxy", "state", "env", "bind_v4", "bind_v6", "isolate"},
	"[limits]": {"connections", "handshake", "dial", "stagger", "idle", "half_open", "drain", "resume", "resume_buffer",
		"memory", "client_memory", "client_streams", "client_carriers", "client_new", "shared"},
}

// headings are those of the tables.
var headings = map[string]string{"log": "[log]", "listen": "[listen]", "bridge": "[bridge.NAME]", "route": "[[route]]", "serve": "[[serve]]",
	"exit": "[exit]", "admin": "[admin]", "pt": "[pt.NAME]", "limits": "[limits]"}

// placeOfArg is place for an arg of a transport.
func placeOfArg(key string) string {
	for _, row := range builtin.Transports() {
		if slices.Contains(row.Args.Known, key) {
			return fmt.Sprintf(": it belongs into args of a bridge, as in args = { %s = \"…\" }, or options of a [[serve]]", key)
		}
	}
	return ""
}

// place is the end of a message about a key that stands in the wrong table: where it
// belongs, or nothing.
func place(key string) string {
	var tables []string
	for table, keys := range places {
		if slices.Contains(keys, key) {
			tables = append(tables, table)
		}
	}
	if heading := headings[key]; len(tables) == 0 && heading != "" {
		return fmt.Sprintf(": it is a table of its own: write %s in a line, and its keys below", heading)
	}
	if len(tables) == 0 {
		return placeOfArg(key)
	}
	if slices.Contains(tables, "") {
		return ": write it above the first [table]; what stands below belongs to that table"
	}
	slices.Sort(tables)
	return ": it belongs below " + strings.Join(tables, " or ")
}
