// Package systemd has the unit of the system service, for `ptgate up`.
package systemd

import _ "embed"

// Unit is ptgate.service, which runs `ptgate` as it is found in the PATH.
//
//go:embed ptgate.service
var Unit string

// Users makes the user that the service runs as, for systemd-sysusers.
//
//go:embed ptgate.sysusers.conf
var Users string
