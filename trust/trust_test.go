package trust

import "testing"

func TestSlots(t *testing.T) {
	s := Slots{
		Head: [32]byte{1}, Epoch: 2, Tick: 3, Boot: Counts{4, 5},
		Committed: Vote{6, 7, [32]byte{8}}, Archive: [32]byte{9},
	}
	b := s.Bytes()
	if got, err := ParseSlots(b); err != nil || got != s {
		t.Errorf("got %+v, %v, want %+v", got, err, s)
	}
	for i := range b {
		c := append([]byte(nil), b...)
		c[i] ^= 0x10
		got, err := ParseSlots(c)
		if i < slotsUsed && (err != nil || got == s) || i >= slotsUsed && err == nil {
			t.Errorf("byte %d: got %+v, %v", i, got, err)
		}
	}
	for _, n := range []int{0, SlotsSize - 1, SlotsSize + 1} {
		if _, err := ParseSlots(make([]byte, n)); err == nil {
			t.Errorf("parsed %d bytes", n)
		}
	}
}

func TestWeakest(t *testing.T) {
	for _, c := range []struct {
		in   []Profile
		want Profile
	}{
		{nil, ProfileSoftware},
		{[]Profile{ProfileLock}, ProfileLock},
		{[]Profile{ProfileMeasured, ProfileMeasured}, ProfileMeasured},
		{[]Profile{ProfileMeasured, ProfileLock}, ProfileLock},
		{[]Profile{ProfileLock, ProfileSoftware, ProfileMeasured}, ProfileSoftware},
		{[]Profile{ProfileMeasured, "quantum"}, ProfileSoftware},
	} {
		if got := Weakest(c.in...); got != c.want {
			t.Errorf("%v: got %v, want %v", c.in, got, c.want)
		}
	}
}

func TestMode(t *testing.T) {
	for m, want := range map[Mode]string{0: "mode(0)", ModeUpdate: "update", ModeService: "service"} {
		if got := m.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
