package replica

import (
	"context"
	"crypto/ed25519"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
)

// keeping remembers the agreement keys that it has given out.
type keeping struct {
	trust.MAS
	keys []ed25519.PrivateKey // owned by the phase until it is over
}

func (k *keeping) AgreementKey(ctx context.Context) (ed25519.PrivateKey, error) {
	key, err := k.MAS.AgreementKey(ctx)
	k.keys = append(k.keys, key)
	return key, err
}

// Whatever becomes of a phase, the key that the device gave is cleared.
func TestAgreementKeyIsCleared(t *testing.T) {
	for name, ids := range map[string][]uint32{"epoch": {1, 2, 3, 4}, "alone": {1}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 4)
			if name == "alone" {
				c.Roster.Limits.Join = c.Roster.Limits.Grace
			}
			k := &keeping{MAS: c.Replicas[0].MAS}
			c.devices[1] = k
			c.phase(t.Context(), ids...)
			if len(k.keys) == 0 {
				t.Fatal("the phase never asked for the key")
			}
			for _, key := range k.keys {
				if !key.Equal(make(ed25519.PrivateKey, ed25519.PrivateKeySize)) {
					t.Error("the key is still there")
				}
			}
		})
	}
}
