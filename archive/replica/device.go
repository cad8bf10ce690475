package replica

import (
	"context"
	"fmt"
	"time"

	"github.com/bonafide-archive/bonafide/trust"
)

// doubtTime is how long a device may take to answer before the service gives it
// up, and the least pause between two doubts that are looked into: callers that
// go away look like a device that does not answer.
const doubtTime = 10 * time.Second

// watchDevice ends the service if its device, once in doubt, does not attest
// service mode any more. Who started the service locks the device before it
// starts another, and brings back one that it owns: so nobody has to wait for the
// next update phase, or to come by.
func (s *service) watchDevice(ctx context.Context) {
	for {
		select {
		case <-s.doubts:
		case <-ctx.Done():
			return
		}
		if err := s.checkDevice(ctx); err != nil && ctx.Err() == nil {
			s.die(fmt.Errorf("the trusted device is out of order: %w", err))
			return
		}
		pause(ctx, doubtTime)
	}
}

func (s *service) checkDevice(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, doubtTime)
	defer cancel()
	st, err := s.attest(ctx)
	if err == nil && st.Mode != trust.ModeService {
		err = ErrUpdateMode
	}
	return err
}
