package procfd

// Follow is what ReferIn does where openat2(2) is missing.
var Follow = follow
