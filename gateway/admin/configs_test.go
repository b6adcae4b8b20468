package admin

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"ptgate/gateway/bridges"
	"ptgate/gateway/outcome"
)

// The alert rules and the dashboard ask for metrics that there are.
func TestConfigs(t *testing.T) {
	p := show(t, near, nil)
	for i, row := range outcome.Rows() {
		label := outcome.Label{}
		for j := range row.Labels {
			label[j] = "x"
		}
		p.book.Counter(outcome.Outcome(i), label).Add(1)
	}
	p.status.Store(&Status{Bridges: []bridges.Status{{RTT: 1}}, Serve: []ServeStatus{{}}})
	_, metrics := p.get(t, "/metrics")
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)`).FindAllString(metrics, -1) {
		known[m] = true
	}
	for file, least := range map[string]int{"../../configs/prometheus-alerts.yml": 9, "../../configs/grafana-dashboard.json": 20} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == "../../configs/grafana-dashboard.json" && !json.Valid(text) {
			t.Errorf("%s is no JSON", file)
		}
		names := regexp.MustCompile(`\b(?:ptgate|process)_\w+`).FindAllString(string(text), -1)
		if len(names) < least {
			t.Errorf("%s has %d metrics", file, len(names))
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}
