package replica

import (
	"fmt"

	"github.com/bonafide-archive/bonafide/archive"
)

// What an Event tells.
const (
	EventProgress   = "progress"   // Done of Total in Part
	EventDamage     = "damage"     // something is not what it must be
	EventRepaired   = "repaired"   // it is again, with a good copy from a peer
	EventUnrepaired = "unrepaired" // no peer gave a good copy
	EventBehind     = "behind"     // peers prove a newer epoch than the own MAS attests
	EventReport     = "report"     // the end: Report says what it came to
)

// The parts of a store that an audit looks at, in its order.
const (
	PartHistory = "history"
	PartTree    = "tree"
	PartContent = "content"
	PartPending = "pending"
)

// Event is one line of an audit's story.
type Event struct {
	Kind    string          `json:"kind"`
	Replica uint32          `json:"replica"`
	Part    string          `json:"part,omitempty"`
	Epoch   archive.Epoch   `json:"epoch,omitempty"`  // history, behind
	Name    archive.Name    `json:"name,omitempty"`   // content: one that is bound to it
	From    string          `json:"from,omitempty"`   // tree: first name of the range
	To      string          `json:"to,omitempty"`     // tree: first name after it; empty: no end
	Digest  *archive.Digest `json:"digest,omitempty"` // content
	Detail  string          `json:"detail,omitempty"`
	Done    uint64          `json:"done,omitempty"`
	Total   uint64          `json:"total,omitempty"`
	Report  *Report         `json:"report,omitempty"`
}

// Subject names what the event is about.
func (e Event) Subject() string {
	switch e.Part {
	case PartHistory:
		return fmt.Sprintf("record of epoch %d", e.Epoch)
	case PartTree:
		if e.From == "" && e.To == "" {
			return "tree"
		}
		return fmt.Sprintf("tree from %q to %q", e.From, e.To)
	case PartPending:
		return "pending submissions"
	case PartContent:
		return fmt.Sprintf("content of %q", string(e.Name))
	}
	return fmt.Sprintf("replica %d", e.Replica)
}

// Report is what an audit came to.
type Report struct {
	Replica  uint32         `json:"replica"`
	Epoch    archive.Epoch  `json:"epoch"` // that the own MAS attests
	Head     archive.Digest `json:"head"`
	Root     archive.Digest `json:"root"`
	Records  uint64         `json:"records"`          // looked at
	Names    uint64         `json:"names"`            // looked at
	Contents uint64         `json:"contents"`         // looked at
	Subset   string         `json:"subset,omitempty"` // of the contents: n/t; empty: all
	Bytes    uint64         `json:"bytes"`            // of the contents
	Damaged  uint64         `json:"damaged"`
	Repaired uint64         `json:"repaired"`
	Behind   archive.Epoch  `json:"behind"` // epochs that peers prove to be ahead
}

// Sound reports whether nothing damaged is left.
func (r Report) Sound() bool { return r.Damaged == r.Repaired }
