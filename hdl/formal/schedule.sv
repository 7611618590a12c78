// A drain goes up to what was committed and no further: the tail never passes the head.
//
// block: schedule
// mode: prove
// depth: 3
// mutant: a drain ends a line behind what is committed
//   targets$0$d = ring_head$0; => targets$0$d = ring_head$0 + 8'h1;
// mutant: a drain that is announced frees everything
//   tails$1$d = targets$1$q; => tails$1$d = ring_head$1 + 8'h1;

localparam [7:0] LINES = 128;

reg [7:0] last_head$0 = 0;
reg [7:0] last_head$1 = 0;
wire [7:0] committed$0 = ring_head$0 - last_head$0;
wire [7:0] committed$1 = ring_head$1 - last_head$1;
wire [7:0] before$0 = last_head$0 - ring_tail$0;
wire [7:0] before$1 = last_head$1 - ring_tail$1;
wire [7:0] drain$0 = targets$0$q - ring_tail$0;
wire [7:0] drain$1 = targets$1$q - ring_tail$1;

always @(posedge clock) begin
    last_head$0 <= ring_head$0;
    last_head$1 <= ring_head$1;
    // Environment: a head goes forward by what has room (journal-engine.sv); a drain is announced once,
    // while it is on. A card reset ends everything, heads included.
    assume (before$0 > LINES || committed$0 <= LINES - before$0);
    assume (before$1 > LINES || committed$1 <= LINES - before$1);
    assume (!announced || (announced_port < 2 && draining$q[announced_port[0]]));
    assume (!card_reset);

    assert (before$0 <= LINES && before$1 <= LINES);
    assert (!draining$q[0] || drain$0 <= before$0);
    assert (!draining$q[1] || drain$1 <= before$1);
end
