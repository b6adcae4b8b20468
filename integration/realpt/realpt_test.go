//go:build integration

package realpt_test

import (
	"os"
	"testing"

	"ptgate/integration/realpt"
)

// TestBuild holds that every pinned program still builds.
func TestBuild(t *testing.T) {
	for name, program := range map[string]func(testing.TB) string{
		"lyrebird":         realpt.Lyrebird,
		"webtunnel-server": realpt.WebtunnelServer,
		"webtunnel-client": realpt.WebtunnelClient,
		"snowflake-client": realpt.SnowflakeClient,
		"snowflake-server": realpt.SnowflakeServer,
		"snowflake-broker": realpt.SnowflakeBroker,
		"snowflake-proxy":  realpt.SnowflakeProxy,
		"pebble":           realpt.Pebble,
	} {
		t.Run(name, func(t *testing.T) {
			info, err := os.Stat(program(t))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode()&0o111 == 0 {
				t.Errorf("mode %v, want executable", info.Mode())
			}
		})
	}
}
