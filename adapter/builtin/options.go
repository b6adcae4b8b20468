package builtin

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin/website"
)

// The server options that set fields of ServerConfig in `ptgate pt`, besides those of
// website.Config. They are not announced to clients. Lists of networks have commas.
const (
	optionTrustedHops    = "trusted-hops"
	optionTrustedProxies = "trusted-proxies"
	optionProxyFrom      = "proxy-from"
	optionProxyWait      = "proxy-wait"
)

// ChildOptions returns the options with which `ptgate pt` does what a Listener in this
// process does with cfg. What is not in them is the default there: a transport behind a web
// server trusts one proxy, on loopback.
func ChildOptions(cfg *ServerConfig) adapter.Args {
	options := append(adapter.Args(nil), cfg.Options...)
	if row, _ := Lookup(cfg.Transport); row.Front {
		if cfg.TrustedHops != 1 {
			options.Add(optionTrustedHops, strconv.Itoa(cfg.TrustedHops))
		}
		if cfg.TrustedProxies != nil {
			options.Add(optionTrustedProxies, formatNetworks(cfg.TrustedProxies))
		}
	}
	if cfg.Site != nil {
		options = append(options, cfg.Site.Options()...)
	}
	if len(cfg.ProxyFrom) > 0 {
		options.Add(optionProxyFrom, formatNetworks(cfg.ProxyFrom))
		if cfg.ProxyWait != 0 {
			options.Add(optionProxyWait, cfg.ProxyWait.String())
		}
	}
	return options
}

// cutOptions takes those options out that are not the transport's, and puts them into cfg.
func cutOptions(options adapter.Args, cfg *ServerConfig) (err error) {
	cfg.TrustedHops = 1
	var site website.Config
	for _, o := range options {
		switch o.Key {
		case optionTrustedHops:
			if cfg.TrustedHops, err = strconv.Atoi(o.Value); err != nil || cfg.TrustedHops < 0 {
				return fmt.Errorf("option %q is no number of proxies", o.Key)
			}
		case optionTrustedProxies:
			cfg.TrustedProxies, err = parseNetworks(o)
		case optionProxyFrom:
			cfg.ProxyFrom, err = parseNetworks(o)
		case optionProxyWait:
			if cfg.ProxyWait, err = time.ParseDuration(o.Value); err != nil || cfg.ProxyWait <= 0 {
				return fmt.Errorf("option %q is no time", o.Key)
			}
		default:
			if site.SetOption(o.Key, o.Value) {
				cfg.Site = &site
			} else {
				cfg.Options = append(cfg.Options, o)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func formatNetworks(networks []netip.Prefix) string {
	list := make([]string, len(networks))
	for i, p := range networks {
		list[i] = p.String()
	}
	return strings.Join(list, ",")
}

func parseNetworks(o adapter.Arg) ([]netip.Prefix, error) {
	networks := []netip.Prefix{}
	for text := range strings.FieldsFuncSeq(o.Value, func(r rune) bool { return r == ',' }) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("option %q has something else than networks", o.Key)
		}
		networks = append(networks, p)
	}
	return networks, nil
}
