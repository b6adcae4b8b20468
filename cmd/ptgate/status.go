package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/supervise"
)

// running finds the socket of the ptgate that runs a file. The file may have
// become wrong since that one loaded it: then only its state directory is needed,
// and found if that is the default.
func running(file string) (socket string, err error) {
	path, err := config.Find(file)
	if err != nil {
		return "", err
	}
	where, err := config.Locate(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w: give the file that ptgate runs with -c FILE", path, err)
	}
	socket = control.Path(where.StateDir, where.Path)
	if !exists(socket) {
		// A system service has its state where systemd puts it.
		if service := control.Path(serviceState, where.Path); exists(service) {
			return service, nil
		}
	}
	return socket, nil
}

// serviceState is where a system service keeps its state (StateDirectory=ptgate in
// systemd/ptgate.service).
const serviceState = "/var/lib/ptgate"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func newReloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make a running ptgate read its configuration again, and report the outcome",
		Long: `Make the running ptgate read its configuration again: the same as SIGHUP, with the
outcome told here. A file with errors changes nothing; live connections go on.`,
		Args: noArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		socket, err := running(*file)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		if err := control.Reload(ctx, socket); err != nil {
			if errors.Is(err, control.ErrNotRunning) {
				return err
			}
			return fmt.Errorf("reload refused, the running configuration stays:\n%w", err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
		return nil
	}
	return cmd
}

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What a running ptgate says of itself",
		Long: `What a running ptgate says of itself: listeners, bridges and their state, served
transports, totals. No destination and no client is named.`,
		Args: noArgs,
	}
	file := configFlag(cmd)
	raw := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		socket, err := running(*file)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		defer cancel()
		b, err := control.Status(ctx, socket)
		if err != nil {
			return err
		}
		if *raw {
			_, err = cmd.OutOrStdout().Write(b)
			return err
		}
		var s gateway.Status
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		printStatus(cmd.OutOrStdout(), &s)
		return nil
	}
	return cmd
}

func printStatus(out io.Writer, s *gateway.Status) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "%s\tpid %d, since %s\n", s.State, s.PID, s.Since.Format(time.DateTime))
	fmt.Fprintf(w, "configuration\t%s, loaded %s\n", s.Config, s.Loaded.Format(time.DateTime))
	for _, l := range s.Listeners {
		fmt.Fprintf(w, "%s\t%s\n", l.Front, l.Address)
	}
	if len(s.Listeners) > 0 || s.Active > 0 {
		fmt.Fprintf(w, "connections\t%d, %s up, %s down in all\n", s.Active, size(s.Up), size(s.Down))
	}
	for _, b := range s.Bridges {
		more := []string{b.State}
		if b.Carriers > 0 {
			more = append(more, plural(b.Carriers, "carrier"))
		}
		if b.RTT > 0 {
			more = append(more, "round trip "+b.RTT.Round(100*time.Microsecond).String())
		}
		more = append(more, plural(int(b.Active), "connection"))
		if b.Why != "" {
			more = append(more, "tried again after "+b.Until.Format(time.TimeOnly), b.Why)
		}
		if b.PT != nil {
			more = append(more, trouble(b.PT)...)
		}
		fmt.Fprintf(w, "bridge %s\t%s, %s: %s\n", b.Name, b.Transport, b.Far, strings.Join(more, ", "))
	}
	for _, x := range s.Serve {
		more := append([]string{plural(int(x.Clients), "client connection"), plural(int(x.Active), "stream"),
			size(x.In) + " in", size(x.Out) + " out"}, trouble(&x.PT)...)
		fmt.Fprintf(w, "serve %s\t%s: %s\n", x.Transport, x.Address, strings.Join(more, ", "))
	}
}

// trouble tells of a transport program that fails.
func trouble(st *supervise.Status) (more []string) {
	if st.Failures == 0 {
		return nil
	}
	more = append(more, "its program has failed "+plural(st.Failures, "time"))
	if st.State == supervise.Waiting {
		more = append(more, "starts again after "+st.Until.Format(time.TimeOnly))
	}
	return append(more, st.Error)
}

func size(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
