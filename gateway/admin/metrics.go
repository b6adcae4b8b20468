package admin

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ptgate/gateway/outcome"
	"ptgate/gateway/supervise"
)

// newMetrics makes the handler of /metrics. What package outcome counts is there by the
// names of its table.
func newMetrics(cfg Config) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		newCollector(cfg),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	// A number that can't be told keeps no other one back.
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second, ErrorHandling: promhttp.ContinueOnError})
}

// A collector reads all numbers at the moment when somebody asks for them.
type collector struct {
	cfg  Config
	rows []*prometheus.Desc // by outcome

	info, ready, loaded, resting, rtt, learned, up *prometheus.Desc
}

func newCollector(cfg Config) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("ptgate_"+name, help, labels, nil)
	}
	c := &collector{
		cfg:     cfg,
		info:    desc("build_info", "1, with the version of the program.", "version"),
		ready:   desc("ready", "Whether each route has a bridge that worked, and the served transports are up."),
		loaded:  desc("config_loaded_timestamp_seconds", "When the running configuration was loaded."),
		resting: desc("bridge_resting", "Whether a bridge has failed, and others are asked first.", "bridge"),
		rtt:     desc("bridge_round_trip_seconds", "The round trip to the far end of a bridge.", "bridge"),
		learned: desc("bridge_learned_limits", "Limits of the network that a bridge's carriers keep to.", "bridge"),
		up:      desc("serve_up", "Whether a served transport runs.", "serve", "address"),
	}
	for _, row := range outcome.Rows() {
		name := row.Name
		if !row.Gauge {
			name += "_total"
		}
		c.rows = append(c.rows, desc(name, row.Help, row.Labels...))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range append([]*prometheus.Desc{c.info, c.ready, c.loaded, c.resting, c.rtt, c.learned, c.up}, c.rows...) {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.cfg.Status()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	rows := outcome.Rows()
	for _, v := range s.Outcomes {
		row := rows[v.Outcome]
		labels := make([]string, len(row.Labels))
		for i, name := range row.Labels {
			labels[i] = v.Labels[name]
		}
		kind := prometheus.CounterValue
		if row.Gauge {
			kind = prometheus.GaugeValue
		}
		to <- prometheus.MustNewConstMetric(c.rows[v.Outcome], kind, float64(v.Value), labels...)
	}
	gauge(c.info, 1, s.Version)
	gauge(c.ready, number(s.Ready))
	gauge(c.loaded, float64(s.Loaded.UnixMilli())/1000)
	for _, b := range s.Bridges {
		gauge(c.resting, number(b.State == "resting"), b.Name)
		gauge(c.learned, float64(len(b.Learned)), b.Name)
		if b.RTT > 0 {
			gauge(c.rtt, b.RTT.Seconds(), b.Name)
		}
	}
	for _, x := range s.Serve {
		gauge(c.up, number(x.PT.State == supervise.Running), x.Transport, x.Address)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
