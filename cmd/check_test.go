package cmd

import (
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
)

func TestHealth(t *testing.T) {
	r := forge.New(forge.Options{Seed: "check"}).Roster
	quiet := r.Schedule.Next(time.Now()).Add(r.Limits.Phase.Std() + time.Minute) // long after a phase began
	well := func() []replicaStatus {
		var all []replicaStatus
		for i := range r.N() {
			all = append(all, replicaStatus{ID: uint32(i + 1), Reachable: true, Attested: true, Phase: "service", Epoch: 7, Pending: uint64(i)})
		}
		return all
	}
	away := replicaStatus{ID: 4, Phase: "unknown", Note: "connection refused"}
	updating := replicaStatus{ID: 4, Phase: "update", Reachable: true}
	for _, tt := range []struct {
		name  string
		now   time.Time
		spoil func([]replicaStatus)
		state int
		says  string
	}{
		{"well", quiet, func([]replicaStatus) {}, checkOK, "epoch 7, 4 replicas; MAS profile software | epoch=7 replicas=4;4:;3:;0;4 updating=0 overdue=0 pending=3 next_update="},
		{"one away", quiet, func(all []replicaStatus) { all[3] = away }, checkWarning, "replica 4: connection refused; MAS"},
		{"one behind", quiet, func(all []replicaStatus) { all[1].Behind = 2 }, checkWarning, "replica 2: behind by 2"},
		{"one damaged", quiet, func(all []replicaStatus) { all[0].Damaged = true }, checkWarning, "replica 1: damaged"},
		{"one reset", quiet, func(all []replicaStatus) { all[0].Unscheduled = true }, checkWarning, "reset out of turn"},
		{"one overdue", quiet, func(all []replicaStatus) { all[0].Overdue = true }, checkWarning, "replica 1: overdue"},
		{"two away", quiet, func(all []replicaStatus) { all[2], all[3] = away, away }, checkCritical, "- 2 of 3 replicas that adds"},
		{"none there", quiet, func(all []replicaStatus) { clear(all) }, checkCritical, "- 0 of 2 needed replicas attest"},
		{"two overdue", quiet, func(all []replicaStatus) { all[0].Overdue, all[1].Overdue = true, true }, checkCritical, "- an update phase is overdue; replica 1"},
		{"rolled back", quiet, func(all []replicaStatus) { all[0].RolledBack, all[3] = true, away }, checkCritical, "- replica 1: DEVICE ROLLED BACK; replica 4"},
		{"one updates", quiet, func(all []replicaStatus) { all[3] = updating }, checkOK, "3 replicas, 1 in an update phase"},
		{"all update, unasked", quiet, func(all []replicaStatus) {
			for i := range all {
				all[i] = updating
			}
		}, checkWarning, "that no schedule asks for"},
		{"all update in time", r.Schedule.Next(quiet).Add(time.Second), func(all []replicaStatus) {
			for i := range all {
				all[i] = updating
			}
		}, checkOK, "4 in an update phase"},
		{"a bar", quiet, func(all []replicaStatus) { all[0].Note = "a | b\nc" }, checkWarning, "replica 1: a / b; c;"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := well()
			tt.spoil(all)
			h := healthOf(r, all, tt.now)
			line := h.line(r, tt.now)
			if h.state != tt.state || !strings.Contains(line, tt.says) || strings.Count(line, "|") != 1 || strings.Contains(line, "\n") {
				t.Errorf("state %d, want %d: %s", h.state, tt.state, line)
			}
		})
	}
}
