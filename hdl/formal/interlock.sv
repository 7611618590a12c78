// Two writes that overlap are never in flight together, unless one is a copy of the other from the same port.
//
// One admission is picked out, any, into any slot of any port, and followed until it is answered: the head
// that is admitted meanwhile doesn't overlap it. So it holds for all of them.
//
// block: interlock
// mode: prove
// depth: 3
// free: slots$0, slots$1
// mutant: writes from the other port aren't looked at
//   equal$0 = (turn$q == 0) => equal$0 = (1'b1)
// mutant: an admission leaves the others clear
//   if (admitted) begin => if (1'b0) begin
// mutant: an overlap with a longer write before isn't seen
//   ((above$1 < slot_sectors$1) | (below$1 < wanted_sectors)) => (below$1 < wanted_sectors)
// mutant: a scan that something came into is believed
//   if (~stale$q) => if (1'b1)

(* anyconst *) reg followed_port;
(* anyconst *) reg [3:0] followed_slot;
(* anyseq *) reg pick;

reg live = 0;
reg [92:0] followed;
reg slot_read = 0;
reg last_waiting$0 = 0;
reg last_waiting$1 = 0;
reg [92:0] last_head$0;
reg [92:0] last_head$1;

wire followed_admit = followed_port ? admit$1 & !copy$1 & (admit_slot$1 == followed_slot)
                                    : admit$0 & !copy$0 & (admit_slot$0 == followed_slot);
wire followed_free = followed_port ? free$1 & (changed_slot$1 == followed_slot)
                                   : free$0 & (changed_slot$0 == followed_slot);
wire [92:0] slot_word = followed_port ? slots$1$read_data : slots$0$read_data;
wire [15:0] followed_busy = (followed_port ? busy$1$q : busy$0$q) >> followed_slot;
wire [92:0] turn_head = turn$q[0] ? head$1 : head$0;
wire turn_waiting = turn$q[0] ? waiting$1 : waiting$0;

function overlap(input [92:0] a, input [92:0] b);
    overlap = a[56:53] == b[56:53]
        && {1'b0, a[47:0]} < {1'b0, b[47:0]} + b[52:48]
        && {1'b0, b[47:0]} < {1'b0, a[47:0]} + a[52:48];
endfunction

function allowed(input port, input [92:0] a, input followed_port, input [92:0] b);
    allowed = !overlap(a, b) || (port == followed_port && a == b && a[60:57] != 15);
endfunction

always @(posedge clock) begin
    last_waiting$0 <= waiting$0 & !admit$0 & !head_dropped$0;
    last_waiting$1 <= waiting$1 & !admit$1 & !head_dropped$1;
    last_head$0 <= head$0;
    last_head$1 <= head$1;
    slot_read <= live && read_slot[3:0] == followed_slot;
    if (followed_admit && pick) begin
        live <= 1;
        followed <= followed_port ? head$1 : head$0;
    end else if (followed_free) live <= 0;

    // What a RAM does: the word read a cycle ago, if it had been written by then.
    assume (!slot_read || slot_word == followed);
    // Environment: a head stays until it is admitted or dropped; one that is clear is admitted into a free slot, a copy
    // into that of its original, one port at a time; only what is in flight is answered for the last time.
    assume (!last_waiting$0 || (waiting$0 && head$0 == last_head$0));
    assume (!last_waiting$1 || (waiting$1 && head$1 == last_head$1));
    assume (!admit$0 || (waiting$0 && clear$0 && !admit$1 && !head_dropped$0));
    assume (!admit$1 || (waiting$1 && clear$1 && !head_dropped$1));
    assume (!head_dropped$0 || waiting$0);
    assume (!head_dropped$1 || waiting$1);
    assume (!admit$0 || (copy$0 ? admit_slot$0 == copy_slot$0 : !(busy$0$q >> admit_slot$0 & 1)));
    assume (!admit$1 || (copy$1 ? admit_slot$1 == copy_slot$1 : !(busy$1$q >> admit_slot$1 & 1)));
    assume (!free$0 || (busy$0$q >> changed_slot$0 & 1));
    assume (!free$1 || (busy$1$q >> changed_slot$1 & 1));
    assume (!waiting$0 || (head$0[52:48] >= 1 && head$0[52:48] <= 17));
    assume (!waiting$1 || (head$1[52:48] >= 1 && head$1[52:48] <= 17));

    assert (turn$q < 2 && scan$q <= 18);
    assert (!live || followed_busy[0]);
    assert (!live || (followed[52:48] >= 1 && followed[52:48] <= 17));
    // A scan goes on about the head that it began with, or knows that it doesn't.
    assert (scan$q == 0 || stale$q || (turn_waiting && wanted$q == turn_head));
    // The word that is compared is the followed one's when it is its turn.
    assert (!(live && !stale$q && scan$q > 1 && followed_slot == scan$q - 2) || slot_read);
    // What the scan has passed doesn't overlap, or it is blocked.
    assert (!(live && !stale$q && scan$q > 2 && followed_slot <= scan$q - 3) || blocked$q
        || allowed(turn$q[0], wanted$q, followed_port, followed));
    // What is clear is waiting, and doesn't overlap.
    assert (!clear$0 || waiting$0);
    assert (!clear$1 || waiting$1);
    assert (!(live && clear$0) || allowed(0, head$0, followed_port, followed));
    assert (!(live && clear$1) || allowed(1, head$1, followed_port, followed));
    // The rule itself.
    assert (!(live && admit$0) || allowed(0, head$0, followed_port, followed));
    assert (!(live && admit$1) || allowed(1, head$1, followed_port, followed));
end
