//go:build !linux

package carrier

import "net"

func limitUnsent(net.Conn) {}
