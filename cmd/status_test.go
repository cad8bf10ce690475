package cmd

import (
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/trust"
)

// An update phase that did not come is shown, and as a watchdog's doing where the
// device has not even been reset.
func TestStatusShowsSuppressedWatchdogs(t *testing.T) {
	r := &archive.Roster{Schedule: "@every 1h", Limits: archive.DefaultLimits()}
	counts := trust.Counts{Reset: 5, Restart: 1}
	for _, tt := range []struct {
		name string
		age  time.Duration
		now  trust.Counts
		want string
	}{
		{"on time", 0, counts, ""},
		{"no reset", 3 * time.Hour, counts, "overdue: its watchdog has not reset the device"},
		{"reset, and no epoch", 3 * time.Hour, trust.Counts{Reset: 6, Restart: 1}, "reset out of turn: counts 6.1, were 5.1; overdue"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := archive.EpochRecord{
				Epoch: 7, Time: time.Now().Add(-tt.age), Joined: []uint32{2},
				Counts: []archive.ReplicaCounts{{Replica: 2, Counts: counts}},
			}
			if tt.age == 0 { // not just before the hour
				rec.Time = time.Now().Add(time.Minute)
			}
			v := &archive.Verified{Replica: 2, Record: rec, Statement: trust.Statement{Mode: trust.ModeService, Counts: tt.now}}
			// What the replica says of itself counts for nothing.
			st := statusOf(client.ReplicaStatus{ID: 2, Verified: v}, r)
			if got := st.remarks(); got != tt.want {
				t.Errorf("remarks %q, want %q", got, tt.want)
			}
			if st.Suppressed != (tt.name == "no reset") || st.Overdue != (tt.age > 0) {
				t.Errorf("suppressed %v, overdue %v", st.Suppressed, st.Overdue)
			}
		})
	}
}
