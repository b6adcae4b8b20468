// Package doctor says in words what is wrong with a bridge: what kind of trouble it is, by
// what it is known, what ptgate does about it by itself, and what a person can do.
//
// Diagnose takes the error of a connection. Infer takes what was measured on several
// connections of one bridge, and OfLimit a limit that sessions have learned. All give a
// Verdict. The words stand in one table, so that the log, the commands and the status page
// say the same.
//
// The package makes no connection. No text of it has an address, a name or an arg in it:
// a private log may show them all.
package doctor

import (
	"fmt"
	"strings"
)

// A Kind is a kind of trouble. Its text is stable: programs read it.
type Kind string

// The kinds.
const (
	Works Kind = "works"

	// On this box.
	Program Kind = "program" // the transport program does not start
	NoRoute Kind = "no-route"
	Names   Kind = "names"    // the name of the bridge, or of a web server in front, is not found
	Poison  Kind = "poisoned" // that name leads to an address that can't be right
	Clock   Kind = "clock"

	// On the way to the bridge.
	Stopped     Kind = "stopped" // its server has said that it stops
	Closed      Kind = "closed"
	Filtered    Kind = "filtered"
	ResetSYN    Kind = "reset-on-connect"
	ResetData   Kind = "reset-on-data"
	Unanswered  Kind = "unanswered"  // the handshake
	GoneSilent  Kind = "gone-silent" // it has worked before
	Handshake   Kind = "handshake"   // it has failed in another way
	Certificate Kind = "certificate"
	WebPath     Kind = "web-path"
	WebBackend  Kind = "web-backend"
	WebServer   Kind = "web-server"
	NoTunnel    Kind = "no-tunnel" // through a web server that was not asked why

	// On connections that worked at first.
	Frozen    Kind = "frozen"
	Cut       Kind = "cut"     // at an age
	Silenced  Kind = "silence" // after a silence
	Throttled Kind = "throttled"
	Crowded   Kind = "too-many" // connections

	// At the far end.
	KeptOut    Kind = "kept-out"
	Full       Kind = "full"
	User       Kind = "user"
	WrongFar   Kind = "far"
	Silent     Kind = "silent" // the far end says nothing
	OtherBox   Kind = "other-box"
	Policy     Kind = "exit-policy"
	NoNames    Kind = "far-names" // the far end can't look names up
	NotFound   Kind = "far-name-unknown"
	Origin     Kind = "far-destination" // the far end can't reach the destination
	Unknown    Kind = "unknown"
	Unmeasured Kind = "unmeasured" // the far end can't be measured
)

// A Verdict is what is known of a bridge.
type Verdict struct {
	Kind     Kind     `json:"kind"`
	Value    string   `json:"value,omitempty"`    // how much: "16KiB", "60s"
	Evidence []string `json:"evidence,omitempty"` // by what it is known
	Says     string   `json:"says"`               // what it is, for a person
	Itself   string   `json:"itself,omitempty"`   // what ptgate does about it
	Next     string   `json:"next,omitempty"`     // what the person can do
}

// words are a row of the table. A %s in says stands for the value.
type words struct{ says, itself, next string }

const (
	rests    = "the bridge rests and is tried again, less and less often; a route with several bridges takes another one"
	replaces = "each connection to the bridge is replaced before that, and downloads go on over the next one"
	unasked  = "nothing has to be done. So that it need not be learned again, write it into the bridge: "
)

var table = map[Kind]words{
	Works: {"it works", "", ""},

	Program: {"the transport program does not start", "it is started again, less and less often", ""},
	NoRoute: {"no route to host: this machine has no way to the bridge's address", rests,
		"is this machine connected at all? Open a page without ptgate, or look at its own connection; an IPv6 address needs IPv6 here"},
	Names: {"the name in the bridge's address or args (url or front) is not found", rests,
		"is the name spelled right, and can this machine look up other names? If it is found elsewhere, give this machine another name server"},
	Poison: {"the name in the bridge's args (url or front) leads to an address that no public server has: the answer to the look-up is false (DNS poisoned), or the server is on a private network", rests,
		"use another name server (over TLS or HTTPS)"},
	Clock: {"the clock of this machine is wrong", "nothing can be done about it from here",
		"set the clock (NTP), and look at `date -u`: obfs4 takes clocks that differ by an hour at most, and certificates have dates"},

	Stopped: {"its server was stopped: it has said so, and has not come back", rests,
		"start it on its machine (`ptgate run` or its service), or ask its operator"},
	Closed: {"port closed: the address answers, but nothing listens there", rests,
		"is the server running, and are the bridge's address and port right? Something on the way can forge such an answer: try from another network"},
	Filtered: {"port filtered: nothing answers at the bridge's address and port, not even with a refusal", rests,
		"is the server's machine on, and the port open in its firewall? If so, something on the way drops the packets: try another port, another bridge or another network"},
	ResetSYN: {"reset after SYN: the connection was reset as soon as it was made, before a byte was sent", rests,
		"something on the way forges resets, or the server's allow or deny keeps this machine's address out, which its log tells. Try another bridge, port or network"},
	ResetData: {"reset after the first data: the connection comes up, and is cut as soon as the handshake begins", rests,
		"something on the way knows this transport, or this name, and cuts it: try another transport or another network. Or the server does not take the handshake: is the line the server's own, and what does its log say?"},
	Unanswered: {"the server took the connection and did not answer the handshake: the cert is another server's, has ended or has a wrong letter, the clock of one side is wrong by more than an hour, or something on the way drops the answer", rests,
		"copy the bridge line anew (`ptgate bridges` on the server: keys change when it is installed anew, and with `ptgate rotate`); compare `date -u` on both sides: a wrong clock is in the server's log; else the transport is filtered: try another one, or another network"},
	GoneSilent: {"the link has gone silent: the bridge has worked, and now nothing answers", rests,
		"does this machine's own network work? If it does, something on the way drops what comes from the bridge, or the server hangs or has got new keys: look at the server, and try another transport or another network"},
	Handshake: {"the handshake has failed: what answers there is not what the bridge line says", rests,
		"is the server running, and are address and args as in the line of its `ptgate bridges`? Its log may say more"},
	Certificate: {"TLS: the certificate is not the expected one: something on the way answers in place of the web server, or the web server has another certificate than the line says", rests,
		"copy the bridge line anew from the server; if it was right, the connection is intercepted: try another network"},
	WebPath: {"the web server answers, and knows no tunnel at that path: the path in the url is wrong, or has ended", rests,
		"the path of the url must be the one in the web server's configuration: copy the line anew (`ptgate bridges` on the server: with `ptgate rotate` there the path changes)"},
	WebBackend: {"the web server answers, but nothing answers behind it: ptgate on that machine is down, or its allow or deny keeps this address out", rests,
		"start ptgate on the server; its log, and the web server's, tell more"},
	WebServer: {"the web server answers, and opens no tunnel", rests,
		"is the url the server's, and does the web server pass upgrades on (see configs/nginx-webtunnel.conf)? Something on the way may answer in its place"},

	NoTunnel: {"the connection ended before the far end said a word: the web server in front can't be reached, or knows no tunnel at that path, or nothing answers behind it, or ptgate there keeps this machine's address out", rests,
		"`ptgate probe` asks the web server, and tells which it is; if it finds nothing wrong with that, the server's log has more"},

	Frozen: {"the network freezes a connection after about %s from the far end", replaces,
		unasked + "bytes in [bridge.NAME.budget], a little less"},
	Cut: {"the network cuts a connection when it is about %s old", replaces,
		unasked + "age in [bridge.NAME.budget], a little less"},
	Silenced: {"the network cuts a connection after %s of silence", "connections to the bridge are kept awake, or are replaced before that, and downloads go on",
		unasked + "idle in [bridge.NAME.budget], a little less"},
	Throttled: {"the network slows each connection down to about %s", "several connections are used at once where that is faster",
		"nothing has to be done; carriers of the bridge can set how many connections there may be"},
	Crowded: {"too many connections: the network lets through about %s, and drops more", "no more connections are made than get through; programs share them, or wait their turn",
		unasked + "number (at once) or new (within a time) in [bridge.NAME.budget]"},

	KeptOut: {"the far end ended the connection as soon as it was made: its allow or deny keeps this machine's address out, it is a ptgate of another version, or it has as many connections as it may have", rests,
		"compare `ptgate version` on both sides, and look at the server's log: `client kept out by allow or deny`, `client speaks neither a carrier of this version nor SOCKS5`, or `there are as many as there may be`; " +
			"add this machine's public address to allow of that [[serve]]"},
	Full: {"the far end has as many connections as it may have, is about to stop, or the user has used up the quota of the month", rests,
		"try again in a moment; on the server, `ptgate users` tells of the quota; raise limits.connections"},
	User: {"the far end does not take the bridge's user and password", rests,
		"user and password of the bridge must be as one of [exit] users or users_file on the server has them; or the invitation was revoked or has ended"},
	WrongFar: {"the transport works, but what stands behind it is not what far of the bridge says", rests,
		"correct far of the bridge: far = \"exit\" needs a ptgate server of this version; \"socks5\" any SOCKS5 server; \"forward\" one fixed service"},
	Silent: {"the transport works, and the far end says nothing", rests,
		"is ptgate running there, and is far of the bridge what it is? A link that has gone silent looks like this, too"},
	OtherBox: {"the bridge leads to another box than before", rests,
		"was the server installed anew, or does a balancer choose among several? If neither, ask its operator"},
	Policy: {"the exit at the far end refuses that destination: its own policy, not a route here", "nothing: it is a rule of the server's operator",
		"look at [exit] allow and deny on the server; by default they keep clients from the server itself and from private networks"},
	NoNames: {"the far end can't look names up: its name servers do not answer", "nothing: every request with a name fails there",
		"look at /etc/resolv.conf and the firewall of the server: its log says so, too"},
	NotFound: {"the far end works, and there is no such name", "nothing", "check the spelling of the name"},
	Origin: {"the far end works, and can't reach the destination", "nothing",
		"the destination may be down: try it from elsewhere"},
	Unknown:    {"it fails", rests, "the log has the error; `ptgate probe` looks closer"},
	Unmeasured: {"it works, and can't be measured: no ptgate exit of this version answers behind it", "", "update the server, or set far = \"exit\" if it is one"},
}

// of makes a Verdict of a row.
func of(k Kind, value string, evidence ...string) Verdict {
	w := table[k]
	if strings.Contains(w.says, "%s") {
		w.says = fmt.Sprintf(w.says, value)
	}
	return Verdict{Kind: k, Value: value, Evidence: evidence, Says: w.says, Itself: w.itself, Next: w.next}
}

// Advice is Says and Next, for a line of a log.
func (v Verdict) Advice() string {
	if v.Next == "" {
		return v.Says
	}
	return v.Says + ". " + strings.ToUpper(v.Next[:1]) + v.Next[1:]
}
