// The leaf clock never runs backwards while it is locked.
//
// block: leaf-clock
// mode: prove
// depth: 3
// mutant: the time jumps without a loss of lock
//   is_locked$d = 1'b0; => is_locked$d = is_locked$q; @ 1
// mutant: a correction of the phase larger than a cycle
//   (shifted >> 32'h6) - ((32'h20000000) & 40'hffffffffff) => (shifted << 32'h2) - ((64'h2000000000) & 40'hffffffffff)

// 8 ns in 2^-32 ns, and the 500 ppm that the clock is made for.
localparam [39:0] NOMINAL = 40'h8_0000_0000;
localparam [39:0] OFF = 40'd17179869;

reg [63:0] last_time;
reg last_locked = 0;
reg [39:0] first_nominal;
reg begun = 0;

always @(posedge clock) begin
    last_time <= time_ns;
    last_locked <= locked;
    first_nominal <= nominal;
    begun <= 1;
    // Environment: the nominal period is a constant; it is before the year 2262.
    assume (nominal >= NOMINAL - OFF && nominal <= NOMINAL + OFF);
    assume (!begun || nominal == first_nominal);
    assume (!now$q[95]);

    // What is added in a cycle is less than 32 ns, except in a jump, and a jump ends the lock.
    assert (jam_flag$q || addend$q < 96'h20_0000_0000);
    assert (!(jam_flag$q && is_locked$q));
    assert (!(last_locked && locked) || time_ns >= last_time);
end
