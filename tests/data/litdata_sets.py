"""Small data sets that litdata 0.2.76 wrote (`optimize`, 4 items, at most 3 a chunk), as texts.

``as_tuple``: (PNG file of 3x2 pixels of red 10 i, i % 2). ``as_pil``: index i, a grey Pillow image of 10 i,
class i % 2. ``as_rows``: a dictionary of bytes and a number, which it stores as Arrow rows. ``as_pickle``: a set in
place of the image, which it pickles.
"""

import base64
import json
import zlib
from pathlib import Path

SETS = {
    "as_tuple": (
        "c-qBOU60c+5d15rK65AUhj$(RO=3IZKsp`}5)$ISvuit{samxUa8yc@dS_?G>q&o}@~7`_U!KErcv)WGP9L96fkOKL_q(Ki&"
        "oI{K(4KhI!>Fez2Cl53gxN6js1}|$F-IJ~2YW#48*6|dD{vW=#X6WFvZg5uNysL)I|40hg<9)C2SZ2G<+(CSNSjXhQ~x(UAs"
        "l^H7BmS&ft0AvXm$3w5Knm<=QYRhe;fmw)uUrrYynaQS~D!uqcc8zc-n&mdyuwm<q@R#zT2Bv=wf@Q;tLh4EQ<Q*f%x`b-%9"
        "=Q^7-4>wl`gjmLzEury@j}F~sG#9#=t~lqGHmLQ3|SF&uG9GU+UFplBdiCMkVQs$sL_Q4y<T@otc^^__EKq0p`>XxNIV#e45"
        "M1hVU{L-=bB;oM;?yYgxn=g{7H&-aD;{n@%g(V*xYj&a2sTvw3pK)@WB(xt|O{WcvHn^3;m#f=>dC$d^^@!wm{tbVrt(P1-m"
        "#6H8F!Bp+-6WY!oF8%y;iKeY=OjeJ>hu@7o`uQn0RzhReXsFzA-raERoSKiMd|(*6xj?6u3ies}3^r$b=W^ZC`D||MUP0Z}i"
        ")DK+-e0$0`}uiZN&Q?yoBORix<j&DJf7f|6e%rptG$ozANMo_onm(y`B3lO+e~!NkIYJ4OGnmPHhSKou<7hswQn$U6AAVImP"
        "kYqt39!;vsKi2PQQKw_@elh"
    ),
    "as_pil": (
        "c-rMv+iu%14E>eD&ut-*A{p;*V#~qW0_nprpg_@oAE{ex&#C>ew^>MJ@p^Pb%Aei%^Y``b$vwH};pN)>c<3Cu^!SkHP}Tx@K"
        "KneoQ?bM4`md+zi@z)WVRYX;_oDm5(a*Et4@QTh(S5j$HT3TBq0#CatrbGqHV!*b@Gz9=Hr5+8C@<GIeLTPZdQUiH0AS>k5K"
        "lY^0^k`O4NEy)7^IiLR4vdWqlXdP(oT?jIWrY2EEa)#j#<W&+KxOH4Xb8k^Y$F8-#jKnbm=!SsO<zG(R_Ci685|J{6E9z=lC"
        "eL%onw>7?M5rP_MG@Giw>5XggXAv$2eKVr^I&0``hPGp%zR^jCI-m7#IdE2QXN?U*m>8*N>y3=(6u&er0L?YgSE#%7D9`JHC"
        "OdKxt3laztfTY_?`dMb!)R-VaXOGr^sPs`p=0+oEpDxFt4k5krEf6~Y{GAd3MRg%4%R(Hr^**CPP%y?t3N+_=KpHjUAW7*iP"
        "J8f8o?LE#}zrT|WtKEDQYrp+JdGoK;p>-gNb*fACbFae;A!?-`@5$8r98(uvv~CPPw5oQ}Q$|W*p)cK1IH`9>xm!wwwVP_uV"
        "Ym96>6_%%ce%pXF{GS{zL93m{YV@Xf9q=f_nN-f?}L3M>>dtwd!r;NsGKZP_w@(dqw}f"
    ),
    "as_rows": (
        "c-rk%ZHwF>5dJG=Klctt$5H!l5;gQ%xPB;wLg|0+j8QMiW;eU#I7&GeH;ME1IIq7>@$--8uMg@$J&sS$r%xYF%BZpcuRjs2w"
        "i+kv49NFX*QhF=TC9P0<W0OSZ(q+ED^|LyG+*Cw^Daxz53APa(a-j)Mh$EB7x}iT0*VBr$<oq(tWUSFzrKFCA2fVadE<h%l4"
        "5tY*LZ*@P+~-m?1B%^`J2C^-vDci?Er0j9v6OA9BGyTzd*TNL#4+>EQaQ{jgV3M%c{RxaPXaI{hj@FeOo$Q;@1cFQ8&_C_-b"
        "5yTI2S?D$M9qQUeUV8WINdh<1xYv+wH}XrKwO>Qf_2AXg(gA0io&U}4V)aB0erbMANoTDFTrMor4=*TMm6jUyvzcCpq3-kUj"
        "mlW5PQ!4Mbe`c{Yl2{wpe^pXh~%oJe^mk`~QplZK9&)8#)487DOs8wB-_?eoYdfWe?t6A5>y$Ij??A1P-{P~=7!<=;(OI~R{"
        "Q!@QdA3yX#3Vo1*T1P6r56=H_aME6J-7`4hbqA;N*S|4r%p43(d!X-ZaKfFF{nFqJuRAEW;~*fJ%{b7G<RI%zqtoujaRC2T<"
        "ELBl<GoMZ)%epeUvsbVKRu`X^YP2~Z>8(IkrT?0ca|iHjMiq*%8u)EJCSz5A=$=Zg3<gMwOaEzL%|JXE0?JpD7To;C^K)QSS"
        "iGmNFoh<&nmansgqG<XO2psthGxbdx+2(Yw!>uyc$ASBDASno|s2;xLNWD_s06MZ^c4#%4yLdJYw;Jt{qN6K)?vt($>a}^6V"
        "W)QZc(yShNH45lt+c<h$h=(--%z66{0a=sxTk*s5YXrp3UHbNt+B*|tO0#B^J6$dk2OiJ!xw)o_gD%{UaQ$QG^=rGmoGlqPR"
        "kv-}FGT8Hgqmaf#^HQI?y8w<YV5sLT3Ywa%G+PHs<r8h5Q-Qha4XH%=Bx3@d*9&yQV<0KPQiPWVG7KDZ~>Gqs2xkagD>BKP-"
        "{JQ6la>33>Ew1RZbn{88%~HEP4|*p!&)}X7ou}rst3Ky9%bMrRwuFqYR|WqAUn&@quFaeKm?53{M0y%u-V{?VoqqoT0y!MZ"
    ),
    "as_pickle": (
        "c-p;G?P}aW41AT~-%Z$+R+62!x%Jv44P1YeLZS5CBkdPw<HJcQ@!_nql4iyut^W-3%dhL(qkD8u@%1`9KMW3CzI-Svj%B4wS"
        "!LPA-Po5fk(=D+8rLbn7@`KF^OJ+c?Jf_8IC2N4VE7%z=d^ge;YiEy?V%guyCIEiu7><ODISS8(${NRem{Nx`6Dw*1YqP*h!"
        ">860C)jMal20|gG>^bS_XOqWSGHi^8|U43scR)nh|*7RQ7n$+?nSZVU5ge)t*zUyTycrF5e4-<}Lt|toBr4!0}X{|8M&Itv*"
        "VfdDR@lkWzW3ddGh5tT7~U0)}BZ#&`$oAk!4ER|U$n=lEc~x+AO(&4*PXqkGL`UbQya|82_DE2lWf(NF+tjk;(#-NlZfyiS?"
        "0b%A2(phQx33F@WBsVcEm{Uz(5gp7*XC3`{%7PZ=(mHU+YFqTNGCq=ejR;Aim48QD@>KdIj2IfNBp|oQd^CSiH&wOj|(%Iti"
        "Tip72U+Y2EDIcYFlD?j|+`Z#A<0y6(T<+Ap88(Hev-I()&!>x1p3_x(Wcs1ckCTatQVN@RscxRM)0t0ipM(A_xCj>h%Gqb3X"
        "Vi(7>bO3U;+DB44yvx73jOQ#l_q4gudGATpMG6%M9jOOPheQX-*+whwaE"
    ),
}


def write_set(name: str, folder: Path) -> Path:
    """Put one of them into a new folder."""
    folder.mkdir(parents=True)
    for file, content in json.loads(zlib.decompress(base64.b85decode(SETS[name]))).items():
        (folder / file).write_bytes(bytes.fromhex(content))
    return folder
