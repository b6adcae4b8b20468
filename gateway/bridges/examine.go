package bridges

import "context"

func (b *Bridge) examine(ctx context.Context, o ProbeOptions, p *Probe) {}
