package config

import (
	"fmt"
	"regexp"
	"strings"
)

// others are the protocols of other programs, by the scheme of their links.
var others = map[string]string{
	"vmess": "V2Ray's VMess", "vless": "Xray's VLESS", "trojan": "Trojan", "ss": "Shadowsocks", "ssr": "ShadowsocksR",
	"shadowsocks": "Shadowsocks", "hysteria": "Hysteria", "hysteria2": "Hysteria", "hy2": "Hysteria", "tuic": "TUIC",
	"anytls": "AnyTLS", "shadowtls": "ShadowTLS", "juicity": "Juicity", "snell": "Snell", "brook": "Brook", "mieru": "mieru",
	"naive+https": "NaiveProxy", "naive+quic": "NaiveProxy", "wireguard": "WireGuard", "wg": "WireGuard", "openvpn": "OpenVPN",
	"tg": "Telegram's own proxies", "ssh": "SSH",
}

const askForBridge = "ask for a bridge line (obfs4 or webtunnel), or for an invitation (ptgate://…)"

// notSpoken says that ptgate has not got the protocol with such a scheme; "": it is none of those.
func notSpoken(scheme string) string {
	name, ok := others[strings.ToLower(scheme)]
	if !ok {
		return ""
	}
	return name + ", which ptgate does not speak: " + askForBridge
}

// A foreigner is a text that people paste where a bridge line belongs.
type foreigner struct {
	text *regexp.Regexp
	says string
}

var foreigners = []foreigner{
	{regexp.MustCompile(`(?i)^ptgate:(//)?\S`), "this is an invitation: `ptgate join` makes a configuration of it"},
	{regexp.MustCompile(`(?i)^\[(Interface|Peer)\]|^(PrivateKey|PublicKey|AllowedIPs|Endpoint)\s*=`), "this is of " + notSpoken("wg")},
	{regexp.MustCompile(`(?i)^(client|dev tun\S*|proto (udp|tcp)\S*|remote \S+ \d+.*)$`), "this is of " + notSpoken("openvpn")},
	{regexp.MustCompile(`(?i)^https?://(t|telegram)\.me/(proxy|socks)\b`), "this is a link for " + notSpoken("tg")},
	{regexp.MustCompile(`(?i)^ssh\s`), "this is a command of " + notSpoken("ssh")},
	{regexp.MustCompile(`(?i)^(socks[45]?[ah]?|http|https)://[^/@]*@`), "this is the address of a proxy, and no bridge: name it in proxy of a [pt.NAME] if the bridges are behind it"},
	{regexp.MustCompile(`(?i)^(socks[45]?[ah]?)://`), "this is the address of a proxy, and no bridge: name it in proxy of a [pt.NAME] if the bridges are behind it"},
	{regexp.MustCompile(`(?i)^(https?://)?[a-z2-7]{56}\.onion\b`), "this is the address of an onion service, which only Tor reaches, and no bridge: " + askForBridge},
	{regexp.MustCompile(`(?i)^https?://`), "this is a web address, and no bridge line: that of a webtunnel bridge is as in \"webtunnel 192.0.2.1:443 url=https://…\"; " +
		"a list of servers for other programs (a subscription) can't be read"},
	{regexp.MustCompile(`^(UseBridges|ClientTransportPlugin|ServerTransportPlugin|SocksPort|SOCKSPort|DataDirectory|UpdateBridgesAutomatically)\s`),
		"this is a line of a torrc, Tor's own configuration: only its Bridge lines are of use here, and `ptgate add-bridge` takes them one at a time"},
	{regexp.MustCompile(`^(\$\s+)?(sudo\s+)?(\./)?ptgate\s+[a-z]`), "this is a command for the shell: paste only what stands in its quotes"},
}

var link = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// Foreign says what a text is that somebody takes for a bridge line, and what to do about
// it; "": it is none of what other programs use. It quotes nothing of the text, which may
// have secrets in it.
func Foreign(text string) string {
	text = strings.TrimSpace(text)
	if m := link.FindStringSubmatch(text); m != nil {
		if says := notSpoken(m[1]); says != "" {
			return "this is a link for " + says
		}
	}
	first, _, _ := strings.Cut(text, "\n")
	for _, f := range foreigners {
		if f.text.MatchString(strings.TrimSpace(first)) {
			return f.says
		}
	}
	return ""
}

// noSuchTransport is the end of a message about a transport that nobody offers.
func noSuchTransport(transport string, known []string) string {
	if says := notSpoken(transport); says != "" {
		return ": it is " + says
	}
	if hint := DidYouMean(transport, known); hint != "" {
		return hint
	}
	return fmt.Sprintf(": name the program in [pt.NAME], with transports = [%q]", transport)
}
