"""The far ends of the lab: a carrier and agents' phones that speak SIP and RTP and measure what arrives.

They stand where real carriers and phones stand, know nothing of the inside, and say what people would have
heard: every voice packet carries its stream's id and a number, so lost, doubled and foreign audio can be
told apart."""
