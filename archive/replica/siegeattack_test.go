package replica

func (s *siege) attack() {}
